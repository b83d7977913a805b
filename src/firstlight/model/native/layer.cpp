// What stands between the products of a layer, forward and backward, in float32: each array is read once and written once.
//
//     norm:          n = x / r, r = sqrt(mean(x^2) + eps)     dx = (dn - n mean(n dn)) / r, and what came past the branch
//     value gate:    v + gate e                               de = gate dv, dgate = sum of dv e
//     squared relu:  a = max(h, 0)^2                          dh = 2 max(h, 0) da
//     gated:         a = g s(g) u, s(g) = 1 / (1 + exp(-g))   dg = u s(g) (1 + g (1 - s(g))) da, du = g s(g) da
//
// Shapes: N tokens, D width.

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "vectors.h"

namespace {

// A NaN stays one.
inline Vec positive(Vec x) { return x < 0.0f ? Vec{} : x; }

// A group of logits from x becomes s(x).
inline void sigmoid(const Vec* x, Vec* s) {
  // Beyond it s would be below 1e-34.
  EACH s[i] = x[i] < -80.0f ? Vec{} + 80.0f : -x[i];
  exponentiate<GROUP>(s);
  EACH s[i] = reciprocal(1.0f + s[i]);
}

// body(at, left) for groups of numbers from place `at` on, of which `left` are this thread's: each has whole vectors, but for
// the last one.
template <class Body>
void over_groups(int64_t count, int32_t threads, Body body) {
#pragma omp parallel num_threads(threads)
  {
    const int64_t vectors = (count + LANES - 1) / LANES, thread = omp_get_thread_num(), all = omp_get_num_threads();
    const int64_t last = std::min(count, vectors * (thread + 1) / all * LANES);
    for (int64_t at = vectors * thread / all * LANES; at < last; at += GROUP_NUMBERS) body(at, last - at);
  }
}

}  // namespace

extern "C" {

// n (N,D) and 1 / r (N) of x (N,D).
void norm_forward(const float* x, int64_t N, int32_t D, float eps, float* n, float* inverse, int32_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t t = 0; t < N; t++) {
    const float* from = x + t * D;
    float* to = n + t * D;
    const float by = inverse[t] = 1 / std::sqrt(dot(from, from, D) / D + eps);
    for (int j = 0; j < D; j++) to[j] = from[j] * by;
  }
}

// dx (N,D) of dn (N,D), which it may overwrite, plus past (N,D), the gradient of x along another way, or a null pointer.
void norm_backward(const float* dn, const float* n, const float* inverse, const float* past, int64_t N, int32_t D, float* dx,
                   int32_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t t = 0; t < N; t++) {
    const float *from = dn + t * D, *normed = n + t * D;
    float* to = dx + t * D;
    const float mean = dot(from, normed, D) / D, by = inverse[t];
    if (past) {
      const float* other = past + t * D;
      for (int j = 0; j < D; j++) to[j] = other[j] + (from[j] - normed[j] * mean) * by;
    } else {
      for (int j = 0; j < D; j++) to[j] = (from[j] - normed[j] * mean) * by;
    }
  }
}

// Of v + gate e, for each of G heads with K numbers: de (N,G,K) and dgate (N,G). Rows of dv lie v_row apart.
void gate_backward(const float* dv, int64_t v_row, const float* e, const float* gate, int64_t N, int32_t G, int32_t K, float* de,
                   float* dgate, int32_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t t = 0; t < N; t++)
    for (int g = 0; g < G; g++) {
      const float* from = dv + t * v_row + g * K;
      const float by = gate[t * G + g];
      const int64_t at = (t * G + g) * K;
      dgate[t * G + g] = dot(from, e + at, K);
      for (int j = 0; j < K; j++) de[at + j] = from[j] * by;
    }
}

// a of h; they may be the same array.
void squared_relu_forward(const float* h, int64_t count, float* a, int32_t threads) {
  over_groups(count, threads, [=](int64_t at, int64_t left) {
    Vec x[GROUP];
    load_group(h + at, left, x);
    EACH x[i] = positive(x[i]);
    EACH x[i] *= x[i];
    store_group(a + at, left, x);
  });
}

// d, the gradient of a, becomes that of h; and h becomes a.
void squared_relu_backward(float* h, int64_t count, float* d, int32_t threads) {
  over_groups(count, threads, [=](int64_t at, int64_t left) {
    Vec x[GROUP], da[GROUP];
    load_group(h + at, left, x);
    load_group(d + at, left, da);
    EACH x[i] = positive(x[i]);
    EACH da[i] *= 2.0f * x[i];
    EACH x[i] *= x[i];
    store_group(h + at, left, x);
    store_group(d + at, left, da);
  });
}

// a of g and u; it may be one of them.
void gated_forward(const float* g, const float* u, int64_t count, float* a, int32_t threads) {
  over_groups(count, threads, [=](int64_t at, int64_t left) {
    Vec x[GROUP], y[GROUP], s[GROUP];
    load_group(g + at, left, x);
    load_group(u + at, left, y);
    sigmoid(x, s);
    EACH y[i] *= x[i] * s[i];
    store_group(a + at, left, y);
  });
}

// g and u become their gradients; d, the gradient of a, becomes a.
void gated_backward(float* g, float* u, int64_t count, float* d, int32_t threads) {
  over_groups(count, threads, [=](int64_t at, int64_t left) {
    Vec x[GROUP], y[GROUP], s[GROUP], da[GROUP], found[GROUP];
    load_group(g + at, left, x);
    load_group(u + at, left, y);
    load_group(d + at, left, da);
    sigmoid(x, s);
    EACH found[i] = x[i] * s[i] * y[i];
    store_group(d + at, left, found);
    EACH found[i] = x[i] * s[i] * da[i];
    store_group(u + at, left, found);
    EACH found[i] = y[i] * s[i] * (1.0f + x[i] * (1.0f - s[i])) * da[i];
    store_group(g + at, left, found);
  });
}
}
