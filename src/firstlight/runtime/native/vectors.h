// Vectors of 16 float32 numbers, in the extensions of gcc: one register with AVX-512, two with AVX2, four with NEON.

#pragma once

#include <cstdint>
#include <cstring>

namespace {

constexpr int LANES = 16;

typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef int32_t IntVec __attribute__((vector_size(4 * LANES)));
typedef uint32_t BitVec __attribute__((vector_size(4 * LANES)));
typedef uint16_t HalfVec __attribute__((vector_size(2 * LANES)));

struct Bf16 {
  uint16_t bits;
};

inline Vec load(const float* at) {
  Vec x;
  std::memcpy(&x, at, sizeof x);
  return x;
}

inline Vec load(const Bf16* at) {
  HalfVec half;
  std::memcpy(&half, at, sizeof half);
  return (Vec)(__builtin_convertvector(half, BitVec) << 16);
}

inline void store(float* at, Vec x) { std::memcpy(at, &x, sizeof x); }

inline float one(const float* at) { return *at; }

inline float one(const Bf16* at) {
  const uint32_t bits = (uint32_t)at->bits << 16;
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

inline void keep(float* at, float x) { *at = x; }

// Rounds to nearest, ties to even, as torch does.
inline void keep(Bf16* at, float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof x);
  at->bits = x != x ? 0x7fc0 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

inline void store(Bf16* at, Vec x) {
  const BitVec bits = (BitVec)x;
  const BitVec rounded = x == x ? (bits + 0x7fff + ((bits >> 16) & 1)) >> 16 : BitVec{} + 0x7fc0;
  const HalfVec half = __builtin_convertvector(rounded, HalfVec);
  std::memcpy(at, &half, sizeof half);
}

// Vectors that are worked on side by side where each goes through a long chain of operations: processors look less far ahead
// than such a chain is long.
#ifdef __AVX512F__
constexpr int GROUP = 8;
#else
constexpr int GROUP = 2;
#endif
constexpr int GROUP_NUMBERS = GROUP * LANES;
#define EACH_OF(n) _Pragma("GCC unroll 8") for (int i = 0; i < (n); i++)
#define EACH EACH_OF(GROUP)

// x becomes e^x, for x <= 88; below -87 about 1e-38; NaN stays NaN. Cephes' expf (S. Moshier): 2 ulp.
template <int N>
inline void exponentiate(Vec* x) {
  const Vec low = Vec{} - 87.0f;
  const Vec shift = Vec{} + 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
  Vec whole[N], y[N];
  EACH_OF(N) x[i] = x[i] < low ? low : x[i];
  EACH_OF(N) whole[i] = x[i] * 1.44269504088896341f + shift;
  EACH_OF(N) whole[i] -= shift;
  EACH_OF(N) x[i] = x[i] - whole[i] * 0.693359375f;
  EACH_OF(N) x[i] = x[i] + whole[i] * 2.12194440e-4f;
  EACH_OF(N) y[i] = x[i] * 1.9875691500e-4f + 1.3981999507e-3f;
  EACH_OF(N) y[i] = y[i] * x[i] + 8.3334519073e-3f;
  EACH_OF(N) y[i] = y[i] * x[i] + 4.1665795894e-2f;
  EACH_OF(N) y[i] = y[i] * x[i] + 1.6666665459e-1f;
  EACH_OF(N) y[i] = y[i] * x[i] + 5.0000001201e-1f;
  EACH_OF(N) y[i] = y[i] * x[i] * x[i] + x[i] + 1.0f;
  EACH_OF(N) whole[i] = (Vec)((__builtin_convertvector(whole[i], IntVec) + 127) << 23);
  EACH_OF(N) x[i] = y[i] * whole[i];
}

// A group of numbers, of which `left` are there: zeros stand for the others.
template <class T>
inline void load_group(const T* from, int64_t left, Vec* x) {
  if (left >= GROUP_NUMBERS) {
    EACH x[i] = load(from + i * LANES);
    return;
  }
  alignas(64) float some[GROUP_NUMBERS] = {};
  for (int j = 0; j < left; j++) some[j] = one(from + j);
  EACH x[i] = load(some + i * LANES);
}

// The first `left` numbers of a group.
inline void store_group(float* to, int64_t left, const Vec* x) {
  if (left >= GROUP_NUMBERS) {
    EACH store(to + i * LANES, x[i]);
    return;
  }
  alignas(64) float some[GROUP_NUMBERS];
  EACH store(some + i * LANES, x[i]);
  std::memcpy(to, some, left * sizeof(float));
}

inline Vec exp_of(Vec x) {
  exponentiate<1>(&x);
  return x;
}

// 1 / x for 1 <= x <= 1e37, within 1 ulp: a division of a whole vector costs as much as an exponential.
inline Vec reciprocal(Vec x) {
#ifdef __AVX512F__
  const Vec guess = __builtin_ia32_rcp14ps512_mask(x, x, -1);
  return guess + guess * (1.0f - x * guess);
#else
  return 1.0f / x;
#endif
}

inline float sum_of(Vec x) {
  float total = 0;
  for (int i = 0; i < LANES; i++) total += x[i];
  return total;
}

template <class T>
inline float dot(const float* a, const T* b, int n) {
  Vec sum0 = {}, sum1 = {};
  int i = 0;
  for (; i + 2 * LANES <= n; i += 2 * LANES) {
    sum0 += load(a + i) * load(b + i);
    sum1 += load(a + i + LANES) * load(b + i + LANES);
  }
  for (; i + LANES <= n; i += LANES) sum0 += load(a + i) * load(b + i);
  float total = sum_of(sum0 + sum1);
  for (; i < n; i++) total += a[i] * one(b + i);
  return total;
}

// y += a * x
template <class T>
inline void add_scaled(float* y, float a, const T* x, int n) {
  int i = 0;
  for (; i + LANES <= n; i += LANES) store(y + i, load(y + i) + a * load(x + i));
  for (; i < n; i++) y[i] += a * one(x + i);
}

}  // namespace
