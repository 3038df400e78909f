// Products of rows [T, K] with a matrix [K, N] packed in panels (tiles_cpu.h): rows stay in a thread's second-level
// cache, a panel of 32 columns in its first.

#pragma once

#include "products_cpu.h"

#include <array>

namespace {

constexpr int64_t CHUNK = 576;   // k of a panel that the first-level cache holds beside the rows

inline int64_t up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

// Rows 2i and 2i + 1 of 32 numbers as 32 pairs, in two vectors of 16.
inline void interleave(__m512i even, __m512i odd, uint32_t* low, uint32_t* high) {
  alignas(64) static const auto index = [] {
    std::array<std::array<uint16_t, 32>, 2> made{};
    for (int i = 0; i < 32; i++)
      for (int half = 0; half < 2; half++) made[half][i] = uint16_t(16 * half + i / 2 + 32 * (i % 2));
    return made;
  }();
  _mm512_store_si512(low, _mm512_permutex2var_epi16(even, _mm512_load_si512(index[0].data()), odd));
  _mm512_store_si512(high, _mm512_permutex2var_epi16(even, _mm512_load_si512(index[1].data()), odd));
}

// 16 rows of 16 pairs, `stride` numbers apart, as columns. What stands `ahead` is fetched.
inline void transpose(const Half* from, int64_t stride, int64_t ahead, uint32_t* to) {
  __m512i r[16], t[16];
  for (int i = 0; i < 16; i++) {
    r[i] = _mm512_loadu_si512(from + i * stride);
    fetch(from + i * stride + ahead, 32);
  }
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; i++) {  // rows 4 g + i hold column 4 lane + i of rows 4 g .. 4 g + 3
    const __m512i a = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x44), b = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xee);
    const __m512i c = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x44);
    const __m512i d = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xee);
    _mm512_store_si512(to + 16 * i, _mm512_shuffle_i32x4(a, c, 0x88));
    _mm512_store_si512(to + 16 * (4 + i), _mm512_shuffle_i32x4(a, c, 0xdd));
    _mm512_store_si512(to + 16 * (8 + i), _mm512_shuffle_i32x4(b, d, 0x88));
    _mm512_store_si512(to + 16 * (12 + i), _mm512_shuffle_i32x4(b, d, 0xdd));
  }
}

// Panel p of B [K, N], which stands there as it is or transposed [N, K]; `stride` of its rows in numbers. The next
// panel is fetched on the way: weights come from memory, and no processor sees such a pattern coming.
void pack(const Half* from, int64_t stride, bool transposed, int64_t K, int64_t p, Half* panel) {
  for (int64_t k = 0; k < K; k += STEP, panel += 2 * TILE) {
    auto to = reinterpret_cast<uint32_t*>(panel);
    if (transposed) {
      transpose(from + p * PANEL * stride + k, stride, PANEL * stride, to);
      transpose(from + (p * PANEL + 16) * stride + k, stride, PANEL * stride, to + TILE / 2);
    } else {
      for (int64_t i = 0; i < 16; i++) {
        const Half* rows = from + (k + 2 * i) * stride + p * PANEL;
        interleave(_mm512_loadu_si512(rows), _mm512_loadu_si512(rows + stride), to + 16 * i, to + TILE / 2 + 16 * i);
        fetch(rows + PANEL, 32);
        fetch(rows + stride + PANEL, 32);
      }
    }
  }
}

// Sums of 32 rows on their way out, `Out::row` by row: what `multiply` wants of what leaves.
template <class Out>
struct InTurns {
  int64_t at = SUB;
  void two() {
    if (at == SUB) return;
    static_cast<Out*>(this)->row(at);
    static_cast<Out*>(this)->row(at + 1);
    at += 2;
  }
  void rest() {
    for (; at < SUB; at++) static_cast<Out*>(this)->row(at);
  }
};

}  // namespace
