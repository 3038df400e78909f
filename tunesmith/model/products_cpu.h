// Products in bf16 by tiles (AMX) or dot products (AVX-512), and numbers on their way to bf16.

#pragma once

#include <c10/util/BFloat16.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>

using Half = c10::BFloat16;

namespace {

constexpr int64_t LANES = 16;
constexpr int64_t BLOCK = 32;  // outputs of a product, tokens of the cache at a time
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

// Asks for numbers that will be read soon.
inline void fetch(const Half* from, int64_t count) {
  for (int64_t i = 0; i < count; i += 32) _mm_prefetch(reinterpret_cast<const char*>(from + i), _MM_HINT_T1);
}

// c [count][m] = from [count][inputs] times x, or added to what is there. m in 16s, count 16 or 32, inputs in 32s;
// `stride`: of a row of `from`, in elements. What lies behind `from` is fetched, to be there when its turn comes.
#ifdef __AMX_BF16__
// GCC's loads of tiles don't tell the compiler that they read memory: what is to be read must be written by now.
inline void settled() { asm volatile("" ::: "memory"); }

void product(const Half* from, int64_t stride, int64_t inputs, int64_t count, const uint32_t* x, int64_t m, float* c,
             bool add) {
  const bool tall = count > LANES;
  settled();
  for (int64_t at = 0; at < m; at += 2 * LANES, c += 2 * LANES) {
    const bool wide = m - at > LANES;
    float* low = c + LANES * m;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    if (add) {
      _tile_loadd(0, c, m * 4);
      if (wide) _tile_loadd(1, c + LANES, m * 4);
      if (tall) _tile_loadd(2, low, m * 4);
      if (tall && wide) _tile_loadd(3, low + LANES, m * 4);
    }
    for (int64_t k = 0; k < inputs; k += 32) {
      if (at == 0) fetch(from + BLOCK * (stride + k), BLOCK * 32);
      _tile_loadd(6, x + k / 2 * m + at, m * 4);
      _tile_loadd(4, from + k, stride * 2);
      _tile_dpbf16ps(0, 4, 6);
      if (tall) {
        _tile_loadd(5, from + LANES * stride + k, stride * 2);
        _tile_dpbf16ps(2, 5, 6);
      }
      if (wide) {
        _tile_loadd(7, x + k / 2 * m + at + LANES, m * 4);
        _tile_dpbf16ps(1, 4, 7);
        if (tall) _tile_dpbf16ps(3, 5, 7);
      }
    }
    _tile_stored(0, c, m * 4);
    if (wide) _tile_stored(1, c + LANES, m * 4);
    if (tall) _tile_stored(2, low, m * 4);
    if (tall && wide) _tile_stored(3, low + LANES, m * 4);
  }
}

// The shapes of the tiles: 16 rows of 64 bytes each. What torch's own products had set is put back.
struct Tiles {
  struct alignas(64) Config {
    uint8_t palette = 0, rest[15] = {};
    uint16_t columns[16] = {};
    uint8_t rows[16] = {};
  };
  Config before;
  Tiles() {
    settled();
    _tile_storeconfig(&before);
    settled();
    Config ours;
    ours.palette = 1;
    std::fill(ours.columns, ours.columns + 8, 64);
    std::fill(ours.rows, ours.rows + 8, 16);
    settled();
    _tile_loadconfig(&ours);
  }
  ~Tiles() {
    settled();
    if (before.palette)
      _tile_loadconfig(&before);
    else
      _tile_release();
  }
};

bool permitted() { return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0; }
#else
void product(const Half* from, int64_t stride, int64_t inputs, int64_t count, const uint32_t* x, int64_t m, float* c,
             bool add) {
  constexpr int64_t N = 8;
  for (int64_t n = 0; n < count; n += N)
    for (int64_t at = 0; at < m; at += LANES) {
      __m512 sum[N];
      for (int64_t i = 0; i < N; i++)
        sum[i] = add ? _mm512_loadu_ps(c + (n + i) * m + at) : _mm512_setzero_ps();
      for (int64_t k = 0; k < inputs / 2; k++) {
        const auto right = (__m512bh)_mm512_loadu_si512(x + k * m + at);
        for (int64_t i = 0; i < N; i++) {
          int32_t left;
          std::memcpy(&left, from + (n + i) * stride + 2 * k, 4);
          sum[i] = _mm512_dpbf16_ps(sum[i], (__m512bh)_mm512_set1_epi32(left), right);
        }
      }
      for (int64_t i = 0; i < N; i++) _mm512_storeu_ps(c + (n + i) * m + at, sum[i]);
    }
}
struct Tiles {};
bool permitted() { return true; }
#endif

}  // namespace
