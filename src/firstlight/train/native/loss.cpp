// What stands between the loss layer's matrix products: soft cap, cross-entropy and the gradient, a row of logits at a time.
//
//     c = s tanh(z / s)        loss = w (log sum_v exp c_v  -  c_y)        dz_v = w (softmax(c)_v - [v = y]) (1 - (c_v / s)^2)
//
// A row stays in its core's cache between its two walks: exponentials and their sum, then the gradient. Logits are float32
// or bf16, all arithmetic is float32.
//
// Every sum has one order, whatever the number of threads.

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "vectors.h"

namespace {

// Below this cap no exponential can overflow or vanish.
constexpr float LARGEST_UNSHIFTED_CAP = 40;

inline float capped(float z, float softcap) { return softcap > 0 ? softcap * std::tanh(z / softcap) : z; }
inline float slope_of(float logit, float softcap) { return softcap > 0 ? 1 - logit / softcap * (logit / softcap) : 1; }

// Vectors whose lanes behind the row's end are zero.
inline void end_group(int v, int V, Vec* x) {
  if (v + GROUP_NUMBERS <= V) return;
  for (int i = 0; i < GROUP; i++)
    for (int lane = std::max(0, V - v - i * LANES); lane < LANES; lane++) x[i][lane] = 0;
}

template <class T>
float largest_of(const T* row, int V) {
  float found = -INFINITY;
  for (int v = 0; v < V; v++) found = std::max(found, one(row + v));
  return found;
}

// The sum of exp(c - shift) over a row's logits c, in one order. into: where it is no null pointer, exp(c - shift) dc/dz of
// every id, and room for a whole group.
//
// tanh(y) = 1 - 2r and its slope is 4 r (1 - r) with r = 1 / (1 + exp(2y)).
template <bool HAS_CAP, class T>
float walk(const T* row, int V, float softcap, float shift, float* into) {
  Vec totals[GROUP] = {};
  for (int v = 0; v < V; v += GROUP_NUMBERS) {
    Vec x[GROUP], r[GROUP];
    load_group(row + v, V - v, x);
    if constexpr (HAS_CAP) {
      EACH x[i] *= 2 / softcap;
      // Beyond it r would be zero or no number, and the slope is below 1e-34.
      EACH x[i] = x[i] > 80.0f ? Vec{} + 80.0f : x[i];
      exponentiate<GROUP>(x);
      EACH r[i] = reciprocal(1.0f + x[i]);
      EACH x[i] = (softcap - shift) - 2 * softcap * r[i];
    } else {
      EACH x[i] -= shift;
    }
    exponentiate<GROUP>(x);
    end_group(v, V, x);
    EACH totals[i] += x[i];
    if (!into) continue;
    if constexpr (HAS_CAP) EACH x[i] *= 4 * r[i] * (1 - r[i]);
    EACH store(into + v + i * LANES, x[i]);
  }
  Vec total = totals[0];
  for (int i = 1; i < GROUP; i++) total += totals[i];
  return sum_of(total);
}

template <class T>
void losses(T* z, int64_t stride, const int64_t* targets, const float* weights, int R, int V, float softcap, bool with_gradient,
            float* out, int threads) {
  const bool has_cap = softcap > 0;
  const bool is_bounded = has_cap && softcap <= LARGEST_UNSHIFTED_CAP;
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> slopes(with_gradient ? V + GROUP_NUMBERS : 0);
    float* into = with_gradient ? slopes.data() : nullptr;
#pragma omp for schedule(static)
    for (int n = 0; n < R; n++) {
      T* row = z + n * stride;
      const int64_t target = targets[n] < 0 ? 0 : targets[n];
      const float c_target = capped(one(row + target), softcap);
      const float shift = is_bounded ? 0 : capped(largest_of(row, V), softcap);
      const float sum = has_cap ? walk<true>(row, V, softcap, shift, into) : walk<false>(row, V, softcap, shift, into);
      const float log_sum = shift + std::log(sum);
      out[n] = (log_sum - c_target) * weights[n];
      if (!with_gradient) continue;
      const float by = weights[n] / sum;
      int v = 0;
      for (; v + LANES <= V; v += LANES) store(row + v, load(into + v) * by);
      for (; v < V; v++) keep(row + v, into[v] * by);
      // At the target, p - 1 is formed before anything is rounded to 16 bits: there p may be within rounding of 1.
      keep(row + target, weights[n] * (into[target] / sum - slope_of(c_target, softcap)));
    }
  }
}

}  // namespace

extern "C" {

// z (R,V), a row `stride` numbers behind the one before, is overwritten by the gradient where one is wanted. A negative
// target has weight 0. softcap: 0 is none.
void losses_float32(float* z, int64_t stride, const int64_t* targets, const float* weights, int32_t R, int32_t V, float softcap,
                    int32_t with_gradient, float* out, int32_t threads) {
  losses(z, stride, targets, weights, R, V, softcap, with_gradient, out, threads);
}

void losses_bfloat16(uint16_t* z, int64_t stride, const int64_t* targets, const float* weights, int32_t R, int32_t V,
                     float softcap, int32_t with_gradient, float* out, int32_t threads) {
  losses((Bf16*)z, stride, targets, weights, R, V, softcap, with_gradient, out, threads);
}
}
