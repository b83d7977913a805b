// Causal self-attention of normed and rotated heads, forward and backward, in float32.
//
// A thread takes a block of N queries against the keys that they can see; the block's scores stay in its core's cache.
// Matrix products are the BLAS's that torch brings (sgemm, one thread each); what is between them is here, so that nothing
// but results is written to memory. With s = 1 / sqrt(K), and q and k normed, rotated and multiplied by the gain:
//
//     e = exp(s q k^T - m), 0 for later keys, m the query's largest      z = sum of e over keys      y = (e v) / z
//     p = exp(s q k^T - m - log z)      dv += p^T dy      d = sum of dy * y      g = p (dy v^T - d)
//     dq = s g k      dk += s g^T q
//
// Every sum has one order, whatever the number of threads.
//
// Shapes: B rows, T tokens, H query heads, G key/value heads, R = H/G, K head size, J = K/2, N queries of a block.
// q, y and their gradients (B,T,H,K), k, v and theirs (B,T,G,K), log_sums m + log z (B,H,T), cosine and sine (T,J).
// Tokens of q, k and v, and of their gradients, lie a row of numbers apart: they may be columns of one matrix.

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>

#include "vectors.h"

extern "C" {

struct Attention {
  const float *q, *k, *v, *cosine, *sine;
  int32_t B, T, H, G, K, q_row, k_row, v_row;
  float gain, eps;
  void* sgemm;
  int32_t num_threads;
};
}

namespace {

constexpr int BLOCK = 64;

typedef void (*Sgemm)(const char*, const char*, const int*, const int*, const int*, const float*, const float*, const int*,
                      const float*, const int*, const float*, float*, const int*);

// A matrix of which a row begins `stride` numbers behind the row before; with 'T' its transpose is meant.
struct Matrix {
  const float* data;
  int stride;
  char order = 'N';
  Matrix transposed() const { return {data, stride, 'T'}; }
};

// c (M,N) = keep * c + a (M,L) b (L,N). BLAS thinks in columns, for which this is c^T = b^T a^T.
inline void product(const Attention& attention, int M, int N, int L, Matrix a, Matrix b, float keep, float* c, int stride) {
  const float one = 1;
  ((Sgemm)attention.sgemm)(&b.order, &a.order, &N, &M, &L, &one, b.data, &b.stride, a.data, &a.stride, &keep, c, &stride);
}

struct Room {
  float* data;
  explicit Room(int64_t floats) : data((float*)std::aligned_alloc(64, (floats * sizeof(float) + 63) / 64 * 64)) {}
  Room(const Room&) = delete;
  ~Room() { std::free(data); }
};

// Rows of a head lie further apart than a processor looks ahead by itself.
inline void look_ahead(const float* row, int64_t stride, int K) {
  for (int j = 0; j < K; j += LANES) __builtin_prefetch(row + 4 * stride + j);
}

// y = x / rms(x), turned by the angles of token t, times scale.
inline void turn(const Attention& a, const float* x, int t, float scale, float* __restrict y) {
  const int J = a.K / 2;
  const float by = scale / std::sqrt(dot(x, x, a.K) / a.K + a.eps);
  const float *cosine = a.cosine + (int64_t)t * J, *sine = a.sine + (int64_t)t * J;
  for (int j = 0; j < J; j++) {
    const float left = x[j] * by, right = x[j + J] * by;
    y[j] = left * cosine[j] + right * sine[j];
  }
  for (int j = 0; j < J; j++) {
    const float left = x[j] * by, right = x[j + J] * by;
    y[j + J] = right * cosine[j] - left * sine[j];
  }
}

// The gradient of `turn`: with n = x / rms(x), and u the incoming gradient turned back, dx = (u - n mean(u n)) / rms(x).
inline void turn_back(const Attention& a, const float* x, int t, float scale, const float* dy, float* __restrict dx) {
  const int J = a.K / 2;
  const float inverse = 1 / std::sqrt(dot(x, x, a.K) / a.K + a.eps);
  const float *cosine = a.cosine + (int64_t)t * J, *sine = a.sine + (int64_t)t * J;
  for (int j = 0; j < J; j++) dx[j] = (dy[j] * cosine[j] - dy[j + J] * sine[j]) * scale;
  for (int j = 0; j < J; j++) dx[j + J] = (dy[j + J] * cosine[j] + dy[j] * sine[j]) * scale;
  const float mean = dot(dx, x, a.K) / a.K * inverse * inverse;
  for (int j = 0; j < a.K; j++) dx[j] = (dx[j] - x[j] * mean) * inverse;
}


// A NaN is no largest number, but stays in what is made of its row.
inline float largest_of(const float* row, int seen) {
  Vec most = Vec{} - INFINITY;
  int j = 0;
  for (; j + LANES <= seen; j += LANES) most = load(row + j) > most ? load(row + j) : most;
  float largest = most[0];
  for (int i = 1; i < LANES; i++) largest = std::max(largest, most[i]);
  for (; j < seen; j++) largest = std::max(largest, row[j]);
  return largest;
}

// Vectors from place j on of a row of scores: zero in the lanes of keys that the query does not see.
inline void hide(Vec* x, int j, int seen) {
  for (int i = std::max(0, seen - j) / LANES; i < GROUP; i++) {
    IntVec place;
    for (int lane = 0; lane < LANES; lane++) place[lane] = j + i * LANES + lane;
    x[i] = place < seen ? x[i] : Vec{};
  }
}

// A row of scores, with whatever lies behind it in its last group, becomes exp(score - shift), and zero up to `end` for the keys that the query does not see.
inline void exponentiate_row(float* row, int seen, int end, float shift) {
  int j = 0;
  for (; j < seen; j += GROUP_NUMBERS) {
    Vec x[GROUP];
    for (int i = 0; i < GROUP; i++) x[i] = load(row + j + i * LANES) - shift;
    exponentiate<GROUP>(x);
    if (j + GROUP_NUMBERS > seen) hide(x, j, seen);
    for (int i = 0; i < GROUP; i++) store(row + j + i * LANES, x[i]);
  }
  for (; j < end; j++) row[j] = 0;
}

// A block of queries: tokens `first` to `last` of head h, which read the keys up to `last`.
struct Block {
  int b, h, first, last;
  int64_t query, result, sums;
  Block(const Attention& a, int b, int h, int index) : b(b), h(h), first(index * BLOCK), last(std::min(a.T, first + BLOCK)) {
    query = (int64_t)(b * a.T + first) * a.q_row + h * a.K;
    result = ((int64_t)(b * a.T + first) * a.H + h) * a.K;
    sums = (int64_t)(b * a.H + h) * a.T + first;
  }
  int size() const { return last - first; }
};

inline int num_blocks(const Attention& a) { return (a.T + BLOCK - 1) / BLOCK; }
inline int64_t key_at(const Attention& a, int row, int b, int g) { return (int64_t)b * a.T * row + g * a.K; }
// A row of scores has room for whole groups; and rows are not a power of two apart, where they would fall on the same lines of
// the cache.
inline int score_stride(const Attention& a) { return (a.T + GROUP_NUMBERS - 1) / GROUP_NUMBERS * GROUP_NUMBERS + LANES; }

inline void turn_keys(const Attention& a, int b, int g, float* keys) {
  const float* k = a.k + key_at(a, a.k_row, b, g);
  for (int t = 0; t < a.T; t++) {
    look_ahead(k + (int64_t)t * a.k_row, a.k_row, a.K);
    turn(a, k + (int64_t)t * a.k_row, t, a.gain, keys + (int64_t)t * a.K);
  }
}

// The block's queries, and its scores.
inline void score(const Attention& a, const Block& block, const float* keys, float* queries, float* scores) {
  const float scale = a.gain / std::sqrt((float)a.K);
  for (int n = 0; n < block.size(); n++) {
    const float* q = a.q + block.query + (int64_t)n * a.q_row;
    look_ahead(q, a.q_row, a.K);
    turn(a, q, block.first + n, scale, queries + (int64_t)n * a.K);
  }
  product(a, block.size(), block.last, a.K, Matrix{queries, a.K}, Matrix{keys, a.K}.transposed(), 0, scores, score_stride(a));
}

inline void attend(const Attention& a, const Block& block, const float* keys, float* queries, float* scores, float* y, float* log_sums) {
  const int stride = score_stride(a), K = a.K;
  float inverse[BLOCK];
  score(a, block, keys, queries, scores);
  for (int n = 0; n < block.size(); n++) {
    float* row = scores + (int64_t)n * stride;
    const int seen = block.first + n + 1;
    const float largest = largest_of(row, seen);
    exponentiate_row(row, seen, block.last, largest);
    Vec total[2] = {};
    for (int j = 0; j < seen; j += 2 * LANES) {
      total[0] += load(row + j);
      total[1] += load(row + j + LANES);
    }
    const float sum = sum_of(total[0] + total[1]);
    inverse[n] = 1 / sum;
    log_sums[block.sums + n] = largest + std::log(sum);
  }
  float* to = y + block.result;
  const Matrix values{a.v + key_at(a, a.v_row, block.b, block.h / (a.H / a.G)), a.v_row};
  product(a, block.size(), K, block.last, Matrix{scores, stride}, values, 0, to, a.H * K);
  for (int n = 0; n < block.size(); n++)
    for (int j = 0; j < K; j++) to[(int64_t)n * a.H * K + j] *= inverse[n];
}

struct BackRoom {
  Room keys, dkeys, queries, dqueries, scores, slopes;
  explicit BackRoom(const Attention& a)
      : keys((int64_t)a.T * a.K), dkeys((int64_t)a.T * a.K), queries((int64_t)BLOCK * a.K), dqueries((int64_t)BLOCK * a.K),
        scores((int64_t)BLOCK * score_stride(a)), slopes((int64_t)BLOCK * score_stride(a)) {}
};

// adds: to what keys and values have got; otherwise theirs is written.
inline void attend_back(const Attention& a, const Block& block, bool adds, const float* y, const float* log_sums, const float* dy,
                        BackRoom& room, float* dq, float* dv) {
  const int stride = score_stride(a), N = block.size(), K = a.K, HK = a.H * K;
  const float keep = adds ? 1 : 0, scale = a.gain / std::sqrt((float)K);
  const int64_t group = key_at(a, a.v_row, block.b, block.h / (a.H / a.G));
  const Matrix dy_block{dy + block.result, HK}, values{a.v + group, a.v_row}, scores{room.scores.data, stride}, slopes{room.slopes.data, stride};
  score(a, block, room.keys.data, room.queries.data, room.scores.data);
  product(a, N, block.last, K, dy_block, values.transposed(), 0, room.slopes.data, stride);
  for (int n = 0; n < N; n++) {
    float *p = room.scores.data + (int64_t)n * stride, *slope = room.slopes.data + (int64_t)n * stride;
    look_ahead(y + block.result + (int64_t)n * HK, HK, K);
    const float d = dot(dy_block.data + (int64_t)n * HK, y + block.result + (int64_t)n * HK, K), log_sum = log_sums[block.sums + n];
    const int seen = block.first + n + 1;
    exponentiate_row(p, seen, block.last, log_sum);
    for (int j = 0; j < block.last; j++) slope[j] = p[j] * (slope[j] - d);
  }
  product(a, block.last, K, N, scores.transposed(), dy_block, keep, dv + group, a.v_row);
  product(a, block.last, K, N, slopes.transposed(), Matrix{room.queries.data, K}, keep, room.dkeys.data, K);
  product(a, N, K, block.last, slopes, Matrix{room.keys.data, K}, 0, room.dqueries.data, K);
  for (int n = 0; n < N; n++) {
    const int64_t at = block.query + (int64_t)n * a.q_row;
    turn_back(a, a.q + at, block.first + n, scale, room.dqueries.data + (int64_t)n * K, dq + at);
  }
}

}  // namespace

extern "C" {

void attention_forward(const Attention* arguments, float* y, float* log_sums) {
  const Attention& a = *arguments;
  const int R = a.H / a.G, num_groups = a.B * a.G, blocks_of_group = R * num_blocks(a);
  // A group of heads at a time, whose keys are turned once; blocks apart only where groups are too few for all threads.
  const int together = num_groups >= a.num_threads ? blocks_of_group : 1;
#pragma omp parallel num_threads(a.num_threads)
  {
    Room keys((int64_t)a.T * a.K), queries((int64_t)BLOCK * a.K), scores((int64_t)BLOCK * score_stride(a));
    int turned = -1;
#pragma omp for schedule(dynamic, 1)
    for (int piece = 0; piece < num_groups * blocks_of_group / together; piece++)
      for (int i = piece * together; i < (piece + 1) * together; i++) {
        const int group = i / blocks_of_group, b = group / a.G, g = group % a.G;
        if (group != turned) turn_keys(a, b, g, keys.data);
        turned = group;
        const Block block(a, b, g * R + i % blocks_of_group / num_blocks(a), i % num_blocks(a));
        attend(a, block, keys.data, queries.data, scores.data, y, log_sums);
      }
  }
}

// dq, dk and dv are written whole.
void attention_backward(const Attention* arguments, const float* y, const float* log_sums, const float* dy, float* dq, float* dk,
                        float* dv) {
  const Attention& a = *arguments;
  const int R = a.H / a.G, last = num_blocks(a) - 1;
#pragma omp parallel num_threads(a.num_threads)
  {
    BackRoom room(a);
#pragma omp for schedule(dynamic, 1)
    for (int group = 0; group < a.B * a.G; group++) {
      const int b = group / a.G, g = group % a.G;
      turn_keys(a, b, g, room.keys.data);
      for (int h = g * R; h < g * R + R; h++)
        // The last block sees all keys, so it may write where the others add.
        for (int index = last; index >= 0; index--)
          attend_back(a, Block(a, b, h, index), h > g * R || index < last, y, log_sums, dy, room, dq, dv);
      for (int t = 0; t < a.T; t++) {
        const int64_t at = key_at(a, a.k_row, b, g) + (int64_t)t * a.k_row;
        turn_back(a, a.k + at, t, a.gain, room.dkeys.data + (int64_t)t * a.K, dk + at);
      }
    }
  }
}
}
