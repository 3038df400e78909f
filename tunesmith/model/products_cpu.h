// What the kernels share beside sums: memory that is kept, numbers on their way to bf16, powers.

#pragma once

#include "tiles_cpu.h"

#include <cstdlib>
#include <memory>

namespace {

constexpr float LOG2_E = 1.44269504f;

// Grows, and is kept: fresh pages cost more than the work done in them.
template <class T>
struct Buffer {
  std::unique_ptr<T[], decltype(&std::free)> data{nullptr, &std::free};
  int64_t held = 0;
  T* get(int64_t count) {
    if (count > held) {
      data.reset();  // before there is another
      data.reset(static_cast<T*>(std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64)));
      held = count;
    }
    return data.get();
  }
};

inline uint32_t rounded(float x) {  // to the nearest bf16, in the upper 16 bits
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits + 0x7fff + ((bits >> 16) & 1);
}

inline uint32_t pair(float even, float odd) { return (rounded(odd) & 0xffff0000u) | (rounded(even) >> 16); }

// 32 numbers as bf16, one after the other.
inline __m512i halves(__m512 first, __m512 second) { return (__m512i)_mm512_cvtne2ps_pbh(second, first); }

// 16 pairs of bf16: the even ones below.
inline __m512i pairs(__m512 even, __m512 odd) {
  const __m512i index = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(index, halves(even, odd));
}

// 16 numbers as fp32.
inline __m512 widened(const Half* x) {
  const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
}

// 2^x, to 4e-6 of it; 0 below the normal numbers, which a processor is slow to leave. NaN stays NaN.
inline __m512 power_of_two(__m512 x) {
  const __mmask16 normal = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ);
  x = _mm512_maskz_mov_ps(normal, x);
  const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 part = _mm512_sub_ps(x, whole);
  __m512 sum = _mm512_set1_ps(1.3333558e-3f);  // Taylor's: ln(2)^n / n!
  for (float next : {9.6181291e-3f, 5.5504109e-2f, 0.24022651f, 0.69314718f, 1.0f})
    sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(next));
  return _mm512_maskz_scalef_ps(normal, sum, whole);
}

void write(const float* x, int64_t count, float factor, Half* out) {
  auto to = reinterpret_cast<uint16_t*>(out);
  for (int64_t i = 0; i < count; i++) to[i] = uint16_t(rounded(x[i] * factor) >> 16);
}

}  // namespace
