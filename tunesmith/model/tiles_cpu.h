// Sums of 32 rows and 32 columns of products in bf16: in the tiles of a processor that has them (AMX), else in vectors
// (AVX-512).
//
//   Sums sums(c, add);      of c [32][32]: with what is there, or from zero on
//   sums.multiply(...)      += 32 rows of x times a panel, any number of times
//   sums.store();           in c, which holds nothing before that
//
// A panel: [K / 32][two tiles of 16 columns][16 pairs of k][16 columns][2], so that a tile is 1,024 bytes in a row.

#pragma once

#include <c10/util/BFloat16.h>
#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

using Half = c10::BFloat16;

namespace {

constexpr int64_t LANES = 16;
constexpr int64_t BLOCK = 32;      // outputs of a product, tokens of the cache at a time
constexpr int64_t STEP = 32;       // k of a tile product
constexpr int64_t SUB = 32;        // rows whose sums are held
constexpr int64_t PANEL = 32;      // columns of a panel
constexpr int64_t TILE = 16 * 32;  // numbers in a tile of bf16

// Asks for numbers that will be read soon.
inline void fetch(const Half* from, int64_t count) {
  for (int64_t i = 0; i < count; i += 32) _mm_prefetch(reinterpret_cast<const char*>(from + i), _MM_HINT_T1);
}

// GCC's loads of tiles don't tell the compiler that they read memory: what is to be read must be written by now.
inline void settled() { asm volatile("" ::: "memory"); }

#ifdef __AMX_BF16__
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

inline void zero() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

class Sums {
 public:
  Sums(float* c, bool add) : c(c) {
    if (add) {
      _tile_loadd(0, c, 128);
      _tile_loadd(1, c + 16, 128);
      _tile_loadd(2, c + 512, 128);
      _tile_loadd(3, c + 528, 128);
    } else {
      zero();
    }
  }

  // += 32 rows of x times K rows of a panel, both filled up with zeros to whole 32s. Products of tiles leave the vector
  // units idle: `leaving.two()` has them take two rows of earlier sums on their way out in every step.
  template <class Leaving>
  void multiply(const Half* x, int64_t stride, const Half* panel, int64_t K, Leaving& leaving) {
    for (int64_t k = 0; k < K; k += STEP, x += STEP, panel += 2 * TILE) {
      _tile_stream_loadd(4, x, stride * 2);
      _tile_loadd(6, panel, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, panel + TILE, 64);
      _tile_dpbf16ps(1, 4, 7);
      _tile_stream_loadd(5, x + 16 * stride, stride * 2);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
      leaving.two();
    }
  }

  // The same of rows laid out as [K / 32][32][32] that stay in the first-level cache, while panels pass through it.
  template <class Leaving>
  void multiply_passing(const Half* rows, const Half* panel, int64_t K, Leaving& leaving) {
    for (int64_t k = 0; k < K; k += STEP, rows += 2 * TILE, panel += 2 * TILE) {
      _tile_loadd(4, rows, 64);
      _tile_stream_loadd(6, panel, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_stream_loadd(7, panel + TILE, 64);
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(5, rows + TILE, 64);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
      leaving.two();
    }
  }

  // `multiply` with the first 16 of a panel's columns alone.
  template <class Leaving>
  void multiply_half(const Half* x, int64_t stride, const Half* panel, int64_t K, Leaving&) {
    for (int64_t k = 0; k < K; k += STEP, x += STEP, panel += 2 * TILE) {
      _tile_loadd(4, x, stride * 2);
      _tile_loadd(6, panel, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(5, x + 16 * stride, stride * 2);
      _tile_dpbf16ps(2, 5, 6);
    }
  }

  void store() {
    _tile_stored(0, c, 128);
    _tile_stored(1, c + 16, 128);
    _tile_stored(2, c + 512, 128);
    _tile_stored(3, c + 528, 128);
  }

 private:
  float* const c;
};

// c [16][32] += 16 rows of x times K rows of a panel; `c_stride` in numbers. Only the first `rows` are wanted, in 8s.
inline void add_product(const Half* x, int64_t stride, const Half* panel, int64_t K, int64_t, float* c,
                        int64_t c_stride) {
  _tile_loadd(0, c, c_stride * 4);
  _tile_loadd(1, c + 16, c_stride * 4);
  for (int64_t k = 0; k < K; k += STEP, x += STEP, panel += 2 * TILE) {
    _tile_loadd(4, x, stride * 2);
    _tile_loadd(6, panel, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, panel + TILE, 64);
    _tile_dpbf16ps(1, 4, 7);
  }
  _tile_stored(0, c, c_stride * 4);
  _tile_stored(1, c + 16, c_stride * 4);
}

// c [count][m] = from [count][inputs] times x, or added to what is there. m in 16s, count 16 or 32, inputs in 32s;
// `stride`: of a row of `from`, in elements; x in pairs of k: [inputs / 2][m]. `ahead`: what lies behind `from` is
// fetched, to be there when its turn comes.
template <bool ahead = true>
void product(const Half* from, int64_t stride, int64_t inputs, int64_t count, const uint32_t* x, int64_t m, float* c,
             bool add) {
  const bool tall = count > LANES;
  settled();
  for (int64_t at = 0; at < m; at += 2 * LANES, c += 2 * LANES) {
    const bool wide = m - at > LANES;
    float* low = c + LANES * m;
    zero();
    if (add) {
      _tile_loadd(0, c, m * 4);
      if (wide) _tile_loadd(1, c + LANES, m * 4);
      if (tall) _tile_loadd(2, low, m * 4);
      if (tall && wide) _tile_loadd(3, low + LANES, m * 4);
    }
    for (int64_t k = 0; k < inputs; k += 32) {
      if (ahead && at == 0) fetch(from + BLOCK * (stride + k), BLOCK * 32);
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

#else
struct [[maybe_unused]] Tiles {};

// sum [8][N vectors] += 8 rows of x times K rows of b in pairs: `next` from pair to pair, `apart` from vector to
// vector, in numbers.
template <int N>
[[gnu::always_inline]] inline void dots(__m512 (&sum)[8][N], const Half* x, int64_t stride, const Half* b, int64_t next,
                                        int64_t apart, int64_t K) {
  for (int64_t k = 0; k < K; k += 2, x += 2, b += next) {
    __m512bh right[N];
    for (int n = 0; n < N; n++) right[n] = (__m512bh)_mm512_loadu_si512(b + n * apart);
    for (int i = 0; i < 8; i++) {
      int32_t left;
      std::memcpy(&left, x + i * stride, 4);
      for (int n = 0; n < N; n++)
        sum[i][n] = _mm512_dpbf16_ps(sum[i][n], (__m512bh)_mm512_set1_epi32(left), right[n]);
    }
  }
}

// c [rows in 8s][N vectors] = rows of x times N vectors' columns of a panel, or added to what is there; `jump`: from 32
// numbers of a row to the next 32. By itself: what is around it would take the registers for addresses.
template <int N>
[[gnu::noinline]] void rows_times(const Half* x, int64_t stride, int64_t jump, const Half* panel, int64_t K,
                                  int64_t rows, float* c, int64_t c_stride, bool add) {
  for (int64_t r = 0; r < rows; r += 8, x += 8 * stride, c += 8 * c_stride) {
    __m512 sum[8][N];
    for (int i = 0; i < 8; i++)
      for (int n = 0; n < N; n++) sum[i][n] = add ? _mm512_loadu_ps(c + i * c_stride + 16 * n) : _mm512_setzero_ps();
    for (int64_t k = 0; k < K; k += STEP)
      dots<N>(sum, x + k / STEP * jump, stride, panel + k * PANEL, 32, TILE, std::min(STEP, K - k));
    for (int i = 0; i < 8; i++)
      for (int n = 0; n < N; n++) _mm512_storeu_ps(c + i * c_stride + 16 * n, sum[i][n]);
  }
}

// Sums stand in c from one product to the next, and in registers during one. What leaves does so before, since it may
// lie there.
class Sums {
 public:
  Sums(float* c, bool add) : c(c), add(add) {}

  template <class Leaving>
  void multiply(const Half* x, int64_t stride, const Half* panel, int64_t K, Leaving& leaving) {
    leaving.rest();
    rows_times<2>(x, stride, STEP, panel, K, SUB, c, PANEL, std::exchange(add, true));
  }

  template <class Leaving>
  void multiply_passing(const Half* rows, const Half* panel, int64_t K, Leaving& leaving) {
    leaving.rest();
    rows_times<2>(rows, STEP, SUB * STEP, panel, K, SUB, c, PANEL, std::exchange(add, true));
  }

  template <class Leaving>
  void multiply_half(const Half* x, int64_t stride, const Half* panel, int64_t K, Leaving& leaving) {
    leaving.rest();
    for (int64_t r = 0; r < SUB && !add; r++) _mm512_storeu_ps(c + r * PANEL + 16, _mm512_setzero_ps());
    rows_times<1>(x, stride, STEP, panel, K, SUB, c, PANEL, std::exchange(add, true));
  }

  void store() {}

 private:
  float* const c;
  bool add;
};

inline void add_product(const Half* x, int64_t stride, const Half* panel, int64_t K, int64_t rows, float* c,
                        int64_t c_stride) {
  rows_times<2>(x, stride, STEP, panel, K, rows, c, c_stride, true);
}

template <int N>
inline void product_columns(const Half* from, int64_t stride, int64_t inputs, const uint32_t* x, int64_t m, float* c,
                            bool add) {
  __m512 sum[8][N];
  for (int i = 0; i < 8; i++)
    for (int n = 0; n < N; n++) sum[i][n] = add ? _mm512_loadu_ps(c + i * m + 16 * n) : _mm512_setzero_ps();
  dots<N>(sum, from, stride, reinterpret_cast<const Half*>(x), 2 * m, 32, inputs);
  for (int i = 0; i < 8; i++)
    for (int n = 0; n < N; n++) _mm512_storeu_ps(c + i * m + 16 * n, sum[i][n]);
}

template <bool ahead = true>
void product(const Half* from, int64_t stride, int64_t inputs, int64_t count, const uint32_t* x, int64_t m, float* c,
             bool add) {
  for (int64_t n = 0; n < count; n += 8, from += 8 * stride, c += 8 * m) {
    int64_t at = 0;
    for (; at + 32 <= m; at += 32) product_columns<2>(from, stride, inputs, x + at, m, c + at, add);
    if (at < m) product_columns<1>(from, stride, inputs, x + at, m, c + at, add);
  }
}
#endif

}  // namespace
