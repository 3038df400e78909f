// A linear layer with LoRA in bf16 on a CPU, forward and backward (model/linear_native.py).
//
//   product    y = x B + h V + bias          h = scale x U
//   forward    x, B = W^T, U = A^T, V = B^T  of the layer; backward  x = dy, B = W, U = B, V = A: the same function
//   gradients  dA = dh^T x, dB = (h^T dy)^T  while the rows are still in the cache
//
// oneDNN's product of these shapes reaches 45 % of what tiles (AMX) can do; low-rank products after it cost as much
// again in reads. Here a thread takes blocks of rows that stay in its second-level cache, and meets panels of 32
// columns that stay in the first: h is one more panel, h V some more steps of each sum. Sums are in fp32, y is
// rounded once.

#include "lora_cpu.h"

namespace {

struct Product {
  int64_t K, N, rank, R;  // R: the rank filled up to whole panels
  Half *B, *U, *V;        // packed; V: a panel of R / 32 steps for each of B's
  const Half* bias;
  float scale;
};

// `rows` rows, of which x and h have whole 32s.
void block(const Product& p, const Half* x, int64_t x_stride, Half* h, Half* y, int64_t rows) {
  const Left left{x, x_stride, up(rows, SUB) / SUB};
  float* c = sums_of.get((left.subs + 1) * SUB * PANEL);
  low_rank(left, p.U, nullptr, nullptr, p.K, p.rank, p.R, p.scale, c, h);
  if (!y) return;
  Leaving leaving;
  for (int64_t n = 0; n < p.N / PANEL; n++)
    panel_sums(left, p.K, p.B + n * PANEL * p.K, Low{h, p.R, p.rank, p.V + n * PANEL * p.R}, c, true, false, leaving,
               [&](int64_t s, const float* sums) {
                 leaving.start(sums, 1.0f, p.bias ? p.bias + n * PANEL : nullptr, std::min(SUB, rows - s * SUB),
                               y + s * SUB * p.N + n * PANEL, p.N);
               });
  leaving.rest();
}

// Packs this thread's share of all that a product needs; a barrier must follow.
void pack_all(const Weight& w, const float* u, int64_t u_down, int64_t u_right, const float* v, int64_t v_down,
              int64_t v_right, int64_t rank, const Product& p, bool forward) {
  shared_out(p.N / PANEL, [&](int64_t n) {
    pack(w.data, w.stride, w.turned != forward, p.K, n, p.B + n * PANEL * p.K);
    pack_small(v, v_down, v_right, rank, p.N, n, p.V + n * PANEL * p.R);
  });
  shared_out(p.R / PANEL, [&](int64_t r) {
    pack_small(u, u_down, u_right, p.K, rank, r, p.U + r * PANEL * p.K);
  });
}

// `packed`: room for K N + (K + N) R numbers.
Product make(int64_t K, int64_t N, int64_t rank, const Half* bias, float scale, Half* packed) {
  const int64_t R = up(rank, PANEL);
  return {K, N, rank, R, packed, packed + K * N, packed + K * (N + R), bias, scale};
}

}  // namespace

extern "C" {

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
      gradient(left, rank, x_rows, x_step, all, D, own_a);
      left = turned(h + at * p.R, all, p.R, rank);
      settled();
      gradient(left, rank, dy_rows, dy_step, all, E, own_b);
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
