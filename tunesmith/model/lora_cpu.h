// What layers with LoRA are made of: panels of sums with their low-rank part, gradients of small matrices, blocks of
// rows.

#pragma once

#include "panels_cpu.h"

#include <omp.h>

namespace {

constexpr int64_t BLOCK_BYTES = 786432;  // rows of x that a thread keeps in its second-level cache

thread_local Buffer<Half> low_of, turned_of, tail_of, other_tail_of;
thread_local Buffer<float> sums_of;
thread_local Buffer<uint32_t> pairs_of;

// Panel p of factor x a small matrix [K, N] in fp32 that stands from row k0 and column n0 on in a larger one; element
// (k, n) at from[k * down + n * right]. The rest of the panel stays.
void put_small(const float* from, int64_t down, int64_t right, int64_t K, int64_t N, float factor, int64_t k0,
               int64_t n0, int64_t p, Half* panel) {
  auto to = reinterpret_cast<uint16_t*>(panel);
  const int64_t first = std::max(n0, p * PANEL), last = std::min(n0 + N, (p + 1) * PANEL);
  for (int64_t k = k0; k < k0 + K; k++)
    for (int64_t n = first; n < last; n++)
      to[k / STEP * 2 * TILE + n % PANEL / 16 * TILE + k % STEP / 2 * 32 + n % 16 * 2 + k % 2] =
          c10::BFloat16(from[(k - k0) * down + (n - n0) * right] * factor).x;  // which leaves no number none
}

inline void clear(Half* panel, int64_t K) {
  std::memset(static_cast<void*>(panel), 0, up(K, STEP) * PANEL * sizeof(Half));
}

// The same of a matrix that stands alone, filled up with zeros.
void pack_small(const float* from, int64_t down, int64_t right, int64_t K, int64_t N, int64_t p, Half* panel) {
  clear(panel, K);
  put_small(from, down, right, K, N, 1.0f, 0, 0, p, panel);
}

// This thread's share of `all` things, one after the other: work(which).
template <class Work>
void shared_out(int64_t all, Work work) {
  const int64_t me = omp_get_thread_num(), count = omp_get_num_threads();
  for (int64_t i = all * me / count; i < all * (me + 1) / count; i++) work(i);
}

// W [E, D] of a layer, or its transpose where `turned`, as the right side of x W^T (forward) or dy W.
struct Weight {
  const Half* data;
  int64_t stride;
  bool turned;
};

// Sums of 32 rows and columns on their way to bf16: with tiles, a few rows at a time between their products, which
// leave the vector units idle.
struct Leaving {
  const float* c = nullptr;
  Half* out = nullptr;
  int64_t stride = 0, rows = 0, at = 0;
  __m512 low, high, by;

  void start(const float* sums, float factor, const Half* bias, int64_t count, Half* to, int64_t step) {
    c = sums, out = to, stride = step, rows = count, at = 0;
    by = _mm512_set1_ps(factor);
    low = high = _mm512_setzero_ps();
    if (bias) {
      low = widened(bias);
      high = widened(bias + 16);
    }
  }
  void row(int64_t r) {
    const __m512 left = _mm512_fmadd_ps(_mm512_load_ps(c + r * PANEL), by, low);
    const __m512 right = _mm512_fmadd_ps(_mm512_load_ps(c + r * PANEL + 16), by, high);
    _mm512_storeu_si512(out + r * stride, (__m512i)_mm512_cvtne2ps_pbh(right, left));
  }
  void two() {
    if (at + 2 > rows) return;
    row(at);
    row(at + 1);
    at += 2;
  }
  void rest() {
    for (; at < rows; at++) row(at);
  }
};

// Rows that stay in the cache, in 32s.
struct Left {
  const Half* x;
  int64_t stride, subs;
};

// What is added to a product's sums: h [rows, R] times V, packed, both filled up with zeros after `rank`.
struct Low {
  const Half* h = nullptr;
  int64_t R = 0, rank = 0;
  const Half* v = nullptr;
};

// Sums of all rows and one panel of K, and of `low`'s, in c [sub][32][32], or with two places in turns where one chunk
// is all and `two`. `add`: to what is there. finished(s, sums) after each sub's last.
template <class Out, class Finished>
void panel_sums(const Left& left, int64_t K, const Half* panel, const Low& low, float* c, bool two, bool add,
                Out& leaving, Finished finished) {
  two &= K <= CHUNK;
  for (int64_t k = 0; k < K; k += CHUNK) {
    const bool last = k + CHUNK >= K;
    for (int64_t s = 0; s < left.subs; s++) {
      // Two places are enough for one chunk: one is filled while the other leaves.
      float* place = c + (two ? s % 2 : s) * SUB * PANEL;
      Sums sums(place, k || add);
      const Half* rows = left.x + s * SUB * left.stride + k;
      sums.multiply(rows, left.stride, panel + k * PANEL, std::min(CHUNK, K - k), leaving);
      if (last && low.rank) sums.multiply(low.h + s * SUB * low.R, low.R, low.v, low.rank, leaving);
      leaving.rest();
      sums.store();
      if (last) finished(s, place);
    }
  }
}

// h [rows, R] = factor x the sum of both sides' x [rows, K] times U [K, rank], packed; a side may be null.
void low_rank(const Left& one, const Half* u, const Left* other, const Half* more, int64_t K, int64_t rank, int64_t R,
              float factor, float* c, Half* h) {
  Leaving leaving;
  for (int64_t r = 0; r < R / PANEL; r++)
    for (int64_t s = 0; s < one.subs; s++) {
      Sums sums(c, false);
      for (bool second : {false, true}) {
        if (second && !other) break;
        const Left& left = second ? *other : one;
        const Half *x = left.x + s * SUB * left.stride, *panel = (second ? more : u) + r * PANEL * K;
        if (rank - r * PANEL > 16)
          sums.multiply(x, left.stride, panel, K, leaving);
        else
          sums.multiply_half(x, left.stride, panel, K, leaving);
      }
      leaving.rest();
      sums.store();
      leaving.start(c, factor, nullptr, SUB, h + s * SUB * R + r * PANEL, R);
    }
  leaving.rest();
  settled();
}

// sums [rank in 16s][N] += left^T [rank, rows] times right [rows, N]; left stands transposed, rows in 32s.
void gradient(const Half* turned, int64_t rank, const Half* right, int64_t stride, int64_t rows, int64_t N,
              float* sums) {
  auto packed = pairs_of.get(rows * PANEL / 2);
  for (int64_t n = 0; n < N; n += PANEL) {
    for (int64_t t = 0; t < rows; t += 2) {
      const Half* from = right + t * stride + n;
      uint32_t* to = packed + t / STEP * TILE + t % STEP / 2 * 16;
      interleave(_mm512_loadu_si512(from), _mm512_loadu_si512(from + stride), to, to + TILE / 2);
    }
    settled();
    for (int64_t r = 0; r < rank; r += 16)
      add_product(turned + r * rows, rows, reinterpret_cast<const Half*>(packed), rows, std::min<int64_t>(16, rank - r),
                  sums + r * N + n, N);
  }
}

// This thread's rows in blocks of at most `most`: calls work(first row, rows); all but the last are whole 32s.
template <class Work>
void in_blocks(int64_t T, int64_t most, Work work) {
  const int64_t subs = up(T, SUB) / SUB, me = omp_get_thread_num(), count = omp_get_num_threads();
  const int64_t first = subs * me / count, last = subs * (me + 1) / count;
  const int64_t blocks = up((last - first) * SUB, most) / most;
  for (int64_t b = 0; b < blocks; b++) {
    const int64_t begin = (first + (last - first) * b / blocks) * SUB;
    const int64_t end = std::min(T, (first + (last - first) * (b + 1) / blocks) * SUB);
    const int64_t whole = (end - begin) / SUB * SUB;
    if (whole) work(begin, whole);
    if (begin + whole < end) work(begin + whole, end - begin - whole);
  }
}

// The rows where they stand, or a copy filled up with rows of zeros.
const Half* filled(Buffer<Half>& memory, const Half* from, int64_t& stride, int64_t rows, int64_t size) {
  if (rows % SUB == 0) return from;
  Half* to = memory.get(SUB * size);
  std::memset(static_cast<void*>(to), 0, SUB * size * sizeof(Half));
  for (int64_t r = 0; r < rows; r++) std::memcpy(static_cast<void*>(to + r * size), from + r * stride, size * 2);
  stride = size;
  return to;
}

// h [rows, R] as [R][rows].
const Half* turned(const Half* h, int64_t rows, int64_t R, int64_t rank) {
  Half* to = turned_of.get(rows * R);
  std::memset(static_cast<void*>(to), 0, rows * R * sizeof(Half));
  for (int64_t r = 0; r < rank; r++)
    for (int64_t t = 0; t < rows; t++) to[r * rows + t] = h[t * R + r];
  return to;
}

int64_t rows_of_block(int64_t width) { return std::max<int64_t>(SUB, BLOCK_BYTES / (2 * width) / SUB * SUB); }

}  // namespace
