// One step: B tokens, from their ids to logits, in one call. A token is the next one of a row of its own, or one of several
// of the same row (a prompt that is read); its key and value go to its place in the cache.
//
// A step of a small model is mostly the cost of calling operations, and of a large one the reading of its weights. So here
// all threads walk through the layers together, each does its share of every stage, and a barrier stands between stages;
// matrices are read once in panels of 32 columns, in the dtype in which they are stored (float32 or bf16), and all
// arithmetic is float32.
//
// Every sum is taken in the same order whatever the number of tokens and of threads: logits are the same to the bit in any
// company, and however a prompt was cut.
//
// Shapes (see fast.py): B tokens, D width, H query heads, G key/value heads, R = H/G, K head size, A = H + G, C = G*K,
// X = (A + G) * K and with a value table G more, F inner width, V vocabulary, M positions of the cache.
// Matrices come packed: (columns/32, inputs, 32), the last panel filled up with zeros.

#include <omp.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "vectors.h"

namespace {

constexpr int PANEL = 2 * LANES;
// Rows that one walk over a panel serves: as many sums as there are registers for.
#ifdef __AVX512F__
constexpr int MAX_ROWS = 12;
#else
constexpr int MAX_ROWS = 4;
#endif

// The products of ROWS rows with one panel: the whole of what is done often.
template <int ROWS, class T>
inline void walk(const float* x, int64_t stride, const T* panel, int inputs, float (*tile)[PANEL]) {
  Vec sums[ROWS][2] = {};
  for (int k = 0; k < inputs; k++) {
    const Vec left = load(panel + (int64_t)k * PANEL), right = load(panel + (int64_t)k * PANEL + LANES);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++) {
      const float a = x[r * stride + k];
      sums[r][0] += a * left;
      sums[r][1] += a * right;
    }
  }
  for (int r = 0; r < ROWS; r++) {
    store(tile[r], sums[r][0]);
    store(tile[r] + LANES, sums[r][1]);
  }
}

template <class T>
inline void walk_rows(int rows, const float* x, int64_t stride, const T* panel, int inputs, float (*tile)[PANEL]) {
#define WALK(n) \
  case n:       \
    if constexpr (n <= MAX_ROWS) return walk<n>(x, stride, panel, inputs, tile);
  switch (rows) {
    WALK(1) WALK(2) WALK(3) WALK(4) WALK(5) WALK(6) WALK(7) WALK(8) WALK(9) WALK(10) WALK(11) WALK(12)
  }
#undef WALK
}

// A share of 0..n for this thread, whole and in order.
struct Share {
  int first, last;
  Share(int n, int thread, int threads) : first((int64_t)n * thread / threads), last((int64_t)n * (thread + 1) / threads) {}
};

// x (rows, inputs) times a packed matrix, this thread's panels of it; use(row, first column, columns, 32 sums).
template <class T, class Use>
inline void product(const float* x, int64_t stride, int rows, const T* matrix, int inputs, int columns, Share panels, Use use) {
  alignas(64) float tile[MAX_ROWS][PANEL];
  for (int p = panels.first; p < panels.last; p++) {
    const int column = p * PANEL, n = std::min(PANEL, columns - column);
    for (int b = 0; b < rows; b += MAX_ROWS) {
      const int some = std::min(MAX_ROWS, rows - b);
      walk_rows(some, x + b * stride, stride, matrix + (int64_t)p * inputs * PANEL, inputs, tile);
      for (int r = 0; r < some; r++) use(b + r, column, n, tile[r]);
    }
  }
}

inline int panels_of(int columns) { return (columns + PANEL - 1) / PANEL; }

}  // namespace

extern "C" {

struct Layer {
  const void *in, *out, *up, *down;
  const float* value_table;
  float keep, again;
};

struct Model {
  const float *table, *slope, *floor, *cosine, *sine, *smear;
  const void* head;
  const Layer* layers;
  int32_t num_layers, D, H, G, K, F, V, has_scales, is_gated, embed_norm;
  float eps, softcap, backout, smear_scale;
};

// slots: rows of the cache. wanted: the tokens, ascending, behind which logits are asked for.
struct Tokens {
  const int64_t *ids, *before, *positions, *slots, *wanted;
  void *keys, *values;
  int64_t layer_stride, slot_stride, head_stride;
  float *scratch, *logits;
  int32_t num_tokens, num_wanted, num_slots, max_position, num_threads;
};
}

namespace {

inline float norm_scale(const Model& m, const float* x) { return 1.0f / std::sqrt(dot(x, x, m.D) / m.D + m.eps); }

inline void start(const Model& m, int64_t id, float* x) {
  const float* row = m.table + id * m.D;
  const float scale = m.embed_norm ? norm_scale(m, row) : 1.0f;
  for (int d = 0; d < m.D; d++) x[d] = row[d] * scale;
}

// Norm, gain and rotation of one head: y = turned(x * rsqrt(slope * sum of squares + floor)).
inline void turn_head(const Model& m, const float* x, int head, int64_t position, float* y) {
  const float scale = 1.0f / std::sqrt(dot(x, x, m.K) * m.slope[head] + m.floor[head]);
  const float *cosine = m.cosine + position * m.K, *sine = m.sine + position * m.K;
  const int half = m.K / 2;
  for (int j = 0; j < half; j++) {
    const float a = x[j] * scale, b = x[j + half] * scale;
    y[j] = a * cosine[j] + b * sine[j];
    y[j + half] = b * cosine[j + half] + a * sine[j + half];
  }
}

// Where the cache has what layer l keeps of token b for its group of heads g, from position 0 on.
inline int64_t place(const Tokens& tokens, int l, int b, int g) {
  return l * tokens.layer_stride + tokens.slots[b] * tokens.slot_stride + g * tokens.head_stride;
}

// Writes the token's key and value. in: its (X) numbers. own: room for K.
template <class T>
inline void remember(const Model& m, const Layer& layer, const Tokens& tokens, int l, int b, int g, const float* in, float* own) {
  const int K = m.K, A = m.H + m.G;
  const int64_t position = tokens.positions[b], at = place(tokens, l, b, g) + position * K;
  T *key = (T*)tokens.keys + at, *value = (T*)tokens.values + at;
  turn_head(m, in + (m.H + g) * K, m.H + g, position, own);
  for (int j = 0; j < K; j++) keep(key + j, own[j]);
  std::memcpy(own, in + (A + g) * K, K * sizeof(float));
  if (layer.value_table) {
    const float gate = 2.0f / (1.0f + std::exp(-in[(A + m.G) * K + g]));
    add_scaled(own, gate, layer.value_table + (tokens.ids[b] * m.G + g) * K, K);
  }
  for (int j = 0; j < K; j++) keep(value + j, own[j]);
}

inline int64_t rounded_up(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

// The token's R query heads of group g attend to all that its row holds up to it. own: room for R queries and their weights.
template <class T>
inline void attend(const Model& m, const Tokens& tokens, int l, int b, int g, const float* in, float* y, float* own) {
  const int R = m.H / m.G, K = m.K;
  const int64_t position = tokens.positions[b], length = position + 1, room = rounded_up(tokens.max_position + 1);
  const T *keys = (const T*)tokens.keys + place(tokens, l, b, g), *values = (const T*)tokens.values + place(tokens, l, b, g);
  float *queries = own, *scores = own + R * K;
  for (int r = 0; r < R; r++) turn_head(m, in + (g * R + r) * K, g * R + r, position, queries + r * K);
  for (int64_t s = 0; s < length; s++)
    for (int r = 0; r < R; r++) scores[r * room + s] = dot(queries + r * K, keys + s * K, K);
  for (int r = 0; r < R; r++) {
    float *weights = scores + r * room, *into = y + (g * R + r) * K, total = 0;
    const float largest = *std::max_element(weights, weights + length);
    std::fill(weights + length, weights + rounded_up(length), largest);
    for (int64_t s = 0; s < length; s += LANES) store(weights + s, exp_of(load(weights + s) - largest));
    for (int64_t s = 0; s < length; s++) total += weights[s];
    std::fill(into, into + K, 0.0f);
    for (int64_t s = 0; s < length; s++) add_scaled(into, weights[s], values + s * K, K);
    for (int j = 0; j < K; j++) into[j] /= total;
  }
}

inline int64_t own_floats(const Model& m, const Tokens& tokens) {
  return (m.H / m.G) * (m.K + rounded_up(tokens.max_position + 1));
}

template <class T>
void step(const Model& m, const Tokens& tokens) {
  const int B = tokens.num_tokens, D = m.D, H = m.H, G = m.G, K = m.K, F = m.F;
  const int wide = (H + 2 * G) * K + G;
  const int64_t own_size = own_floats(m, tokens);
  float* x = tokens.scratch;
  float* first = x + (int64_t)B * D;
  float* middle = first + (int64_t)B * D;
  float* in = middle + (int64_t)B * D;
  float* heads = in + (int64_t)B * wide;
  float* inner = heads + (int64_t)B * H * K;
  float* scales = inner + (int64_t)B * F;
  float* owns = scales + (int64_t)tokens.num_threads * B;
  float* lasts = owns + tokens.num_threads * own_size;

#pragma omp parallel num_threads(tokens.num_threads)
  {
    const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
    float *scale = scales + (int64_t)thread * B, *own = owns + thread * own_size;
    float* last = lasts + (int64_t)thread * tokens.num_wanted * D;
    const Share mine(B, thread, threads), my_columns(D, thread, threads), my_panels(panels_of(D), thread, threads);
    // Each thread for itself, of all rows: cheaper than to wait for one another.
    const auto measure = [&] {
      for (int b = 0; b < B; b++) scale[b] = norm_scale(m, x + (int64_t)b * D);
    };
    const auto add_to_x = [&](int b, int column, int n, const float* sums) {
      float* to = x + (int64_t)b * D + column;
      for (int j = 0; j < n; j++) to[j] += sums[j];
    };

    for (int b = mine.first; b < mine.last; b++) {
      float *to = x + (int64_t)b * D, *before = middle + (int64_t)b * D;
      start(m, tokens.ids[b], to);
      if (m.smear && tokens.positions[b] > 0) {
        start(m, tokens.before[b], before);
        add_scaled(to, m.smear_scale / (1.0f + std::exp(-dot(to, m.smear, D))), before, D);
      }
      std::memcpy(first + (int64_t)b * D, to, D * sizeof(float));
      std::memcpy(before, to, D * sizeof(float));
    }
#pragma omp barrier
    for (int l = 0; l < m.num_layers; l++) {
      const Layer& layer = m.layers[l];
      if (m.has_scales) {
        for (int b = 0; b < B; b++)
          for (int d = my_columns.first; d < my_columns.last; d++) {
            const int64_t i = (int64_t)b * D + d;
            x[i] = layer.keep * x[i] + layer.again * first[i];
          }
#pragma omp barrier
      }
      const int X = (H + 2 * G) * K + (layer.value_table ? G : 0);
      measure();
      product(x, D, B, (const T*)layer.in, D, X, Share(panels_of(X), thread, threads),
              [&](int b, int column, int n, const float* sums) {
                float* to = in + (int64_t)b * wide + column;
                for (int j = 0; j < n; j++) to[j] = sums[j] * scale[b];
              });
#pragma omp barrier
      const Share groups(B * G, thread, threads);
      for (int i = groups.first; i < groups.last; i++)
        remember<T>(m, layer, tokens, l, i / G, i % G, in + (int64_t)(i / G) * wide, own);
      // Where every token has a row of its own it reads no other's key.
      if (tokens.num_wanted < B) {
#pragma omp barrier
      }
      for (int i = groups.first; i < groups.last; i++) {
        const int b = i / G;
        attend<T>(m, tokens, l, b, i % G, in + (int64_t)b * wide, heads + (int64_t)b * H * K, own);
      }
#pragma omp barrier
      product(heads, H * K, B, (const T*)layer.out, H * K, D, my_panels, add_to_x);
#pragma omp barrier
      measure();
      const Share inners(panels_of(F), thread, threads);
      if (m.is_gated) {
        product(x, D, B, (const T*)layer.up, D, F, inners, [&](int b, int column, int n, const float* sums) {
          float* to = inner + (int64_t)b * F + column;
          alignas(64) float minus[PANEL];
          for (int j = 0; j < PANEL; j++) minus[j] = -sums[j] * scale[b];
          for (int j = 0; j < PANEL; j += LANES) store(minus + j, exp_of(load(minus + j) > 80.0f ? Vec{} + 80.0f : load(minus + j)));
          for (int j = 0; j < n; j++) to[j] = sums[j] * scale[b] / (1.0f + minus[j]);
        });
        // The second matrix begins at a panel of its own.
        const T* fc = (const T*)layer.up + (int64_t)panels_of(F) * D * PANEL;
        product(x, D, B, fc, D, F, inners, [&](int b, int column, int n, const float* sums) {
          float* to = inner + (int64_t)b * F + column;
          for (int j = 0; j < n; j++) to[j] *= sums[j] * scale[b];
        });
      } else {
        product(x, D, B, (const T*)layer.up, D, F, inners, [&](int b, int column, int n, const float* sums) {
          float* to = inner + (int64_t)b * F + column;
          for (int j = 0; j < n; j++) {
            const float positive = std::max(sums[j] * scale[b], 0.0f);
            to[j] = positive * positive;
          }
        });
      }
#pragma omp barrier
      product(inner, F, B, (const T*)layer.down, F, D, my_panels, add_to_x);
#pragma omp barrier
      if (m.backout != 0 && l == m.num_layers / 2) {
        for (int b = mine.first; b < mine.last; b++)
          std::memcpy(middle + (int64_t)b * D, x + (int64_t)b * D, D * sizeof(float));
#pragma omp barrier
      }
    }
    if (m.backout != 0) {
      for (int b = mine.first; b < mine.last; b++) add_scaled(x + (int64_t)b * D, -m.backout, middle + (int64_t)b * D, D);
#pragma omp barrier
    }
    // Each thread brings the wanted ones together for itself, in room that it has alone.
    for (int w = 0; w < tokens.num_wanted; w++) {
      std::memcpy(last + (int64_t)w * D, x + tokens.wanted[w] * D, D * sizeof(float));
      scale[w] = norm_scale(m, last + (int64_t)w * D);
    }
    product(last, D, tokens.num_wanted, (const T*)m.head, D, m.V, Share(panels_of(m.V), thread, threads),
            [&](int b, int column, int n, const float* sums) {
              float* to = tokens.logits + (int64_t)b * m.V + column;
              alignas(64) float capped[PANEL];
              for (int j = 0; j < PANEL; j += LANES) {
                Vec z = load(sums + j) * scale[b];
                if (m.softcap != 0) {
                  // tanh(a) = 1 - 2 / (e^2a + 1), and 1 - 1e-8 at a = 20
                  Vec twice = z * (2.0f / m.softcap);
                  twice = twice > 40.0f ? Vec{} + 40.0f : twice;
                  z = m.softcap - 2.0f * m.softcap / (exp_of(twice) + 1.0f);
                }
                store(capped + j, z);
              }
              std::memcpy(to, capped, n * sizeof(float));
            });
  }
}

template <class T>
void pack_as(T* panels, const T* matrix, int64_t inputs, int64_t columns, int threads) {
#pragma omp parallel for num_threads(threads)
  for (int64_t p = 0; p < panels_of(columns); p++) {
    T* to = panels + p * inputs * PANEL;
    const int64_t n = std::min<int64_t>(PANEL, columns - p * PANEL);
    for (int64_t k = 0; k < inputs; k++, to += PANEL) {
      for (int64_t j = 0; j < n; j++) to[j] = matrix[(p * PANEL + j) * inputs + k];
      std::fill(to + n, to + PANEL, T{});
    }
  }
}

int32_t first_wrong(const Model& m, const Tokens& tokens) {
  for (int b = 0; b < tokens.num_tokens; b++) {
    const int64_t id = tokens.ids[b], before = tokens.before[b], position = tokens.positions[b], slot = tokens.slots[b];
    if (id < 0 || id >= m.V || before < 0 || before >= m.V || position < 0 || position > tokens.max_position || slot < 0 ||
        slot >= tokens.num_slots)
      return b + 1;
  }
  for (int w = 0; w < tokens.num_wanted; w++) {
    const int64_t least = w ? tokens.wanted[w - 1] + 1 : 0;
    if (tokens.wanted[w] < least || tokens.wanted[w] >= tokens.num_tokens) return 1;
  }
  return 0;
}

}  // namespace

extern "C" {

// Floats that `scratch` must have room for.
int64_t scratch_floats(const Model* m, const Tokens* tokens) {
  const int64_t of_token = 3 * m->D + (m->H + 2 * m->G) * m->K + m->G + m->H * m->K + m->F;
  const int64_t of_thread = tokens->num_tokens + own_floats(*m, *tokens) + (int64_t)tokens->num_wanted * m->D;
  return tokens->num_tokens * of_token + tokens->num_threads * of_thread;
}

// Fewer and larger pages: the first writing to fresh memory is most of the cost of laying weights out. Without them it works as well.
void prefer_large_pages(void* start, int64_t bytes) {
#ifdef __linux__
  const uintptr_t page = 4096, first = ((uintptr_t)start + page - 1) / page * page, last = (uintptr_t)start + bytes;
  if (last > first) madvise((void*)first, last - first, MADV_HUGEPAGE);
#else
  (void)start, (void)bytes;
#endif
}

// (columns, inputs), in rows that lie one behind another, to panels. size: bytes of a number.
void pack(void* panels, const void* matrix, int64_t inputs, int64_t columns, int32_t size, int32_t threads) {
  if (size == 4)
    pack_as((float*)panels, (const float*)matrix, inputs, columns, threads);
  else
    pack_as((uint16_t*)panels, (const uint16_t*)matrix, inputs, columns, threads);
}

// 0, or 1 + the first token whose id, position or slot does not exist; nothing is done then.
int32_t step_float32(const Model* m, const Tokens* tokens) {
  const int32_t wrong = first_wrong(*m, *tokens);
  if (!wrong) step<float>(*m, *tokens);
  return wrong;
}

int32_t step_bfloat16(const Model* m, const Tokens* tokens) {
  const int32_t wrong = first_wrong(*m, *tokens);
  if (!wrong) step<Bf16>(*m, *tokens);
  return wrong;
}
}
