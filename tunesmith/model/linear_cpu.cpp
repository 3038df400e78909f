// A linear layer with LoRA in bf16 on a CPU with tiles (AMX), forward and backward (model/linear_native.py).
//
//   product    y = x B + h V + bias          h = scale x U
//   forward    x, B = W^T, U = A^T, V = B^T  of the layer; backward  x = dy, B = W, U = B, V = A: the same function
//   gradients  dA = dh^T x, dB = (h^T dy)^T  while the rows are still in the cache
//
// oneDNN's product of these shapes reaches 45 % of what the tiles can do; low-rank products after it cost as much
// again in reads. Here a thread takes blocks of rows that stay in its second-level cache, and meets panels of 32
// columns that stay in the first: h is one more panel, h V some more steps of each sum. Sums are in fp32, y is
// rounded once.

#include "panels_cpu.h"

#include <omp.h>

namespace {

constexpr int64_t BLOCK_BYTES = 786432;  // rows of x that a thread keeps in its second-level cache

thread_local Buffer<Half> low_of, turned_of, tail_of, other_tail_of;
thread_local Buffer<float> sums_of;
thread_local Buffer<uint32_t> pairs_of;

// A panel of a small matrix in fp32, filled up with zeros: element (k, n) at from[k * down + n * right].
void pack_small(const float* from, int64_t down, int64_t right, int64_t K, int64_t N, int64_t p, Half* panel) {
  auto to = reinterpret_cast<uint16_t*>(panel);
  std::memset(static_cast<void*>(panel), 0, up(K, STEP) * PANEL * sizeof(Half));
  const int64_t columns = std::min(PANEL, N - p * PANEL);
  from += p * PANEL * right;
  for (int64_t k = 0; k < K; k++)
    for (int64_t n = 0; n < columns; n++)
      to[k / STEP * 2 * TILE + n / 16 * TILE + k % STEP / 2 * 32 + n % 16 * 2 + k % 2] =
          uint16_t(rounded(from[k * down + n * right]) >> 16);
}

// Sums of 32 rows and columns on their way to bf16: taken a few rows at a time between tile products, which
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
  static __m512 widened(const Half* x) {
    const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
  }
};

// `multiply` with the first 16 of a panel's columns alone.
inline void multiply_half(const Half* x, int64_t stride, const Half* panel, int64_t steps) {
  for (int64_t i = 0; i < steps; i++, x += STEP, panel += 2 * TILE) {
    _tile_loadd(4, x, stride * 2);
    _tile_loadd(6, panel, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, x + 16 * stride, stride * 2);
    _tile_dpbf16ps(2, 5, 6);
  }
}

struct Product {
  int64_t K, N, rank, R;  // R: the rank filled up to whole panels
  Half *B, *U, *V;        // packed; V: a panel of R / 32 steps for each of B's
  const Half* bias;
  float scale;
};

// `rows` rows, of which x and h have whole 32s.
void block(const Product& p, const Half* x, int64_t x_stride, Half* h, Half* y, int64_t rows) {
  const int64_t subs = up(rows, SUB) / SUB;
  float* c = sums_of.get((subs + 1) * SUB * PANEL);
  Leaving leaving;
  for (int64_t r = 0; r < p.R / PANEL; r++)
    for (int64_t s = 0; s < subs; s++) {
      zero();
      if (p.rank - r * PANEL > 16)
        multiply(x + s * SUB * x_stride, x_stride, p.U + r * PANEL * p.K, p.K / STEP, leaving);
      else
        multiply_half(x + s * SUB * x_stride, x_stride, p.U + r * PANEL * p.K, p.K / STEP);
      leaving.rest();
      store(c);
      leaving.start(c, p.scale, nullptr, SUB, h + s * SUB * p.R + r * PANEL, p.R);
    }
  leaving.rest();
  if (!y) return;
  settled();
  for (int64_t n = 0; n < p.N / PANEL; n++) {
    const Half* panel = p.B + n * PANEL * p.K;
    for (int64_t k = 0; k < p.K; k += CHUNK) {
      const int64_t steps = std::min(CHUNK, p.K - k) / STEP;
      const bool last = k + CHUNK >= p.K;
      for (int64_t s = 0; s < subs; s++) {
        // With one chunk two places are enough: one is filled while the other leaves.
        float* sums = c + (p.K > CHUNK ? s : s % 2) * SUB * PANEL;
        if (k)
          load(sums);
        else
          zero();
        multiply(x + s * SUB * x_stride + k, x_stride, panel + k * PANEL, steps, leaving);
        if (last && p.R) multiply(h + s * SUB * p.R, p.R, p.V + n * PANEL * p.R, p.R / STEP, leaving);
        leaving.rest();
        store(sums);
        if (last)
          leaving.start(sums, 1.0f, p.bias ? p.bias + n * PANEL : nullptr, std::min(SUB, rows - s * SUB),
                        y + s * SUB * p.N + n * PANEL, p.N);
      }
    }
  }
  leaving.rest();
}

// sums [R][N] += left^T [R, rows] times right [rows, N]; left stands transposed, [R][rows], rows in 32s.
void gradient(const Half* turned, int64_t R, const Half* right, int64_t stride, int64_t rows, int64_t N, float* sums) {
  auto packed = pairs_of.get(rows * PANEL / 2);
  for (int64_t n = 0; n < N; n += PANEL) {
    for (int64_t t = 0; t < rows; t += 2) {
      const Half* from = right + t * stride + n;
      uint32_t* to = packed + t / STEP * TILE + t % STEP / 2 * 16;
      interleave(_mm512_loadu_si512(from), _mm512_loadu_si512(from + stride), to, to + TILE / 2);
    }
    settled();
    for (int64_t r = 0; r < R; r += 16) {
      float* c = sums + r * N + n;
      _tile_loadd(0, c, N * 4);
      _tile_loadd(1, c + 16, N * 4);
      for (int64_t t = 0; t < rows; t += STEP) {
        _tile_loadd(4, turned + r * rows + t, rows * 2);
        _tile_loadd(6, packed + t / STEP * TILE, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, packed + t / STEP * TILE + TILE / 2, 64);
        _tile_dpbf16ps(1, 4, 7);
      }
      _tile_stored(0, c, N * 4);
      _tile_stored(1, c + 16, N * 4);
    }
  }
}

// W [E, D] of a layer, or its transpose where `turned`, as the right side of x W^T (forward) or dy W.
struct Weight {
  const Half* data;
  int64_t stride;
  bool turned;
};

// Packs this thread's share of all that a product needs; a barrier must follow.
void pack_all(const Weight& w, const float* u, int64_t u_down, int64_t u_right, const float* v, int64_t v_down,
              int64_t v_right, int64_t rank, const Product& p, bool forward) {
  const int64_t all = p.N / PANEL, me = omp_get_thread_num(), count = omp_get_num_threads();
  for (int64_t n = me; n < all; n += count) {
    pack(w.data, w.stride, w.turned != forward, p.K, n, p.B + n * PANEL * p.K);
    pack_small(v, v_down, v_right, rank, p.N, n, p.V + n * PANEL * p.R);
  }
  for (int64_t r = me; r < p.R / PANEL; r += count)
    pack_small(u, u_down, u_right, p.K, rank, r, p.U + r * PANEL * p.K);
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

// `packed`: room for K N + (K + N) R numbers.
Product make(int64_t K, int64_t N, int64_t rank, const Half* bias, float scale, Half* packed) {
  const int64_t R = up(rank, PANEL);
  return {K, N, rank, R, packed, packed + K * N, packed + K * (N + R), bias, scale};
}

}  // namespace

extern "C" {

int linear_supported() { return permitted(); }

// y [T, E] = x W^T + bias + h b^T, h [T in whole 32s, R] = scale x a^T; a [rank, D], b [E, rank] in fp32. `packed`:
// room for D E + (D + E) R numbers.
void linear_forward(const Half* x, const Half* w, const Half* bias, const float* a, const float* b, int64_t x_stride,
                    int64_t w_stride, int64_t w_turned, int64_t T, int64_t D, int64_t E, int64_t rank, float scale,
                    int64_t threads, Half* y, Half* h, Half* packed) {
  const Product p = make(D, E, rank, bias, scale, packed);
#pragma omp parallel num_threads(threads)
  {
    Tiles tiles;
    pack_all({w, w_stride, w_turned != 0}, a, 1, D, b, 1, rank, rank, p, true);
#pragma omp barrier
    settled();
    in_blocks(T, rows_of_block(D), [&](int64_t at, int64_t rows) {
      int64_t stride = x_stride;
      const Half* from = filled(tail_of, x + at * x_stride, stride, rows, D);
      settled();
      block(p, from, stride, h + at * p.R, y + at * E, rows);
    });
  }
}

// dx [T, D] = dy W + dh a (null: not wanted), da [rank, D] = dh^T x, db [E, rank] = dy^T h, dh = scale dy b. `parts`:
// room for rank in whole 16s x (D + E) numbers of each thread.
void linear_backward(const Half* dy, const Half* x, const Half* w, const float* a, const float* b, const Half* h,
                     int64_t dy_stride, int64_t x_stride, int64_t w_stride, int64_t w_turned, int64_t T, int64_t D,
                     int64_t E, int64_t rank, float scale, int64_t threads, Half* dx, float* da, float* db,
                     Half* packed, float* parts) {
  const Product p = make(E, D, rank, nullptr, scale, packed);
  const int64_t tall = up(rank, 16), part = tall * (D + E);
  int64_t used = 1;
#pragma omp parallel num_threads(threads)
  {
    Tiles tiles;
    pack_all({w, w_stride, w_turned != 0}, b, rank, 1, a, D, 1, rank, p, false);
    float* own_a = parts + omp_get_thread_num() * part;
    float* own_b = own_a + tall * D;
    if (omp_get_thread_num() == 0) used = omp_get_num_threads();
    std::fill(own_a, own_a + part, 0.0f);
#pragma omp barrier
    settled();
    in_blocks(T, rows_of_block(std::max(D, E)), [&](int64_t at, int64_t rows) {
      const int64_t all = up(rows, SUB);
      int64_t dy_step = dy_stride, x_step = x_stride;
      const Half* dy_rows = filled(tail_of, dy + at * dy_stride, dy_step, rows, E);
      const Half* x_rows = filled(other_tail_of, x + at * x_stride, x_step, rows, D);
      Half* dh = low_of.get(all * p.R);
      settled();
      block(p, dy_rows, dy_step, dh, dx ? dx + at * D : nullptr, rows);
      const Half* left = turned(dh, all, p.R, rank);
      settled();
      gradient(left, tall, x_rows, x_step, all, D, own_a);
      left = turned(h + at * p.R, all, p.R, rank);
      settled();
      gradient(left, tall, dy_rows, dy_step, all, E, own_b);
    });
  }
#pragma omp parallel for num_threads(threads)
  for (int64_t r = 0; r < rank; r++) {
    for (int64_t i = 0; i < D; i++) {
      float sum = 0;
      for (int64_t t = 0; t < used; t++) sum += parts[t * part + r * D + i];
      da[r * D + i] = sum;
    }
    for (int64_t i = 0; i < E; i++) {
      float sum = 0;
      for (int64_t t = 0; t < used; t++) sum += parts[t * part + tall * D + r * E + i];
      db[i * rank + r] = sum;
    }
  }
}
}
