// A gated feed-forward block with LoRA in bf16 on a CPU, forward and backward (model/gated_native.py).
//
//   g = gate(x)   u = up(x)   act = silu(g) u   y = down(act)      each of the three: x W^T + scale (x A^T) B^T
//
// What lies between the products is taken from their sums as these leave, while tiles (AMX) work on the next ones: act
// and its gradient never exist but for a block of rows in the cache. gate and up share x, so that their low-rank parts
// are one: h = x [A_gate; A_up]^T. Scales stand in B: h holds none.

#include "lora_cpu.h"

#include <utility>

namespace {

enum { GATE, UP, DOWN };
constexpr int64_t PAIR_BYTES = 1179648;  // dg and du of the rows that a thread keeps in its second-level cache

thread_local Buffer<Half> act_of, gate_of, up_of, low_down_of;
thread_local Buffer<float> gate_sums_of;

// What the two functions take, laid out as gated_native.Layers has it. D: size of x and y, E: of g and u.
struct Layers {
  const Half* w[3];
  const float *a[3], *b[3];
  int64_t stride[3], turned[3], rank[3];
  float scale[3];
  int64_t D, E;
  Weight weight(int i) const { return {w[i], stride[i], turned[i] != 0}; }
};

// Where the packed matrices of one direction lie, and their sizes.
struct Packed {
  int64_t D, E, pair, down, P, R;  // ranks of gate and up together and of down; P and R: in whole panels
  Half *gate, *up, *out;           // the three weights
  Half *pair_u, *pair_v, *pair_more, *down_u, *down_v;
  Packed(const Layers& l, Half* at)
      : D(l.D), E(l.E), pair(l.rank[GATE] + l.rank[UP]), down(l.rank[DOWN]), P(::up(pair, PANEL)),
        R(::up(down, PANEL)) {
    auto take = [&](int64_t count) { return std::exchange(at, at + count); };
    gate = take(D * E), up = take(D * E), out = take(D * E);
    pair_u = take(P * E), pair_v = take(P * E), pair_more = take(P * D);
    down_u = take(R * E), down_v = take(R * D);
  }
};

inline __m512 sigmoid(__m512 x) {
  const __m512 below = _mm512_add_ps(power_of_two(_mm512_mul_ps(x, _mm512_set1_ps(-LOG2_E))), _mm512_set1_ps(1.0f));
  return _mm512_div_ps(_mm512_set1_ps(1.0f), below);
}

// Sums of gate and up on their way: g and u to memory, silu(g) u into the block.
struct GatedOut : InTurns<GatedOut> {
  const float *gate = nullptr, *up = nullptr;
  Half *g = nullptr, *u = nullptr, *act = nullptr;
  int64_t stride = 0, rows = 0;  // rows: real ones; act has all 32

  void start(const float* gate_sums, const float* up_sums, Half* to_g, Half* to_u, Half* to_act, int64_t count,
             int64_t step) {
    gate = gate_sums, up = up_sums, g = to_g, u = to_u, act = to_act, rows = count, stride = step, at = 0;
  }
  void row(int64_t r) {
    const float *left = gate + r * PANEL, *right = up + r * PANEL;
    const __m512 g0 = _mm512_load_ps(left), g1 = _mm512_load_ps(left + 16);
    const __m512 u0 = _mm512_load_ps(right), u1 = _mm512_load_ps(right + 16);
    if (r < rows) {
      _mm512_storeu_si512(g + r * stride, halves(g0, g1));
      _mm512_storeu_si512(u + r * stride, halves(u0, u1));
    }
    _mm512_storeu_si512(act + r * stride, halves(_mm512_mul_ps(_mm512_mul_ps(g0, sigmoid(g0)), u0),
                                                 _mm512_mul_ps(_mm512_mul_ps(g1, sigmoid(g1)), u1)));
  }
};

// Sums of act's gradient on their way: those of g and u, and act again, into the block.
struct GatedBack : InTurns<GatedBack> {
  const float* sums = nullptr;
  const Half *g = nullptr, *u = nullptr;
  Half *dg = nullptr, *du = nullptr, *act = nullptr;
  int64_t stride = 0, rows = 0;

  void start(const float* from, const Half* gate, const Half* up, Half* to_g, Half* to_u, Half* to_act, int64_t count,
             int64_t step) {
    sums = from, g = gate, u = up, dg = to_g, du = to_u, act = to_act, rows = count, stride = step, at = 0;
  }
  void row(int64_t r) {
    __m512 by_g[2], by_u[2], again[2];
    for (int64_t i = 0; i < 2; i++) {
      const int64_t from = r * stride + 16 * i;
      const __m512 grad = _mm512_load_ps(sums + r * PANEL + 16 * i), one = _mm512_set1_ps(1.0f);
      const __m512 gate = r < rows ? widened(g + from) : _mm512_setzero_ps();
      const __m512 up = r < rows ? widened(u + from) : _mm512_setzero_ps();
      const __m512 s = sigmoid(gate), silu = _mm512_mul_ps(gate, s);
      // silu' = s (1 + g (1 - s)) = s + silu (1 - s)
      const __m512 slope = _mm512_fmadd_ps(silu, _mm512_sub_ps(one, s), s);
      by_g[i] = _mm512_mul_ps(_mm512_mul_ps(grad, up), slope);
      by_u[i] = _mm512_mul_ps(grad, silu);
      again[i] = _mm512_mul_ps(silu, up);
    }
    _mm512_storeu_si512(dg + r * stride, halves(by_g[0], by_g[1]));
    _mm512_storeu_si512(du + r * stride, halves(by_u[0], by_u[1]));
    _mm512_storeu_si512(act + r * stride, halves(again[0], again[1]));
  }
};

// Packs this thread's share for the way forward; a barrier must follow.
void pack_forward(const Layers& l, const Packed& p) {
  const int64_t first = l.rank[GATE];
  shared_out(p.E / PANEL, [&](int64_t n) {
    for (int i : {GATE, UP}) {
      pack(l.w[i], l.stride[i], !l.turned[i], p.D, n, (i == GATE ? p.gate : p.up) + n * PANEL * p.D);
      Half* v = (i == GATE ? p.pair_u : p.pair_v) + n * PANEL * p.P;
      clear(v, p.P);
      put_small(l.b[i], 1, l.rank[i], l.rank[i], p.E, l.scale[i], i == GATE ? 0 : first, 0, n, v);
    }
  });
  shared_out(p.D / PANEL, [&](int64_t n) {
    pack(l.w[DOWN], l.stride[DOWN], !l.turned[DOWN], p.E, n, p.out + n * PANEL * p.E);
    clear(p.down_v + n * PANEL * p.R, p.R);
    put_small(l.b[DOWN], 1, p.down, p.down, p.D, l.scale[DOWN], 0, 0, n, p.down_v + n * PANEL * p.R);
  });
  shared_out(p.P / PANEL, [&](int64_t r) {
    Half* u = p.pair_more + r * PANEL * p.D;
    clear(u, p.D);
    put_small(l.a[GATE], 1, p.D, p.D, first, 1.0f, 0, 0, r, u);
    put_small(l.a[UP], 1, p.D, p.D, l.rank[UP], 1.0f, 0, first, r, u);
  });
  shared_out(p.R / PANEL, [&](int64_t r) {
    pack_small(l.a[DOWN], 1, p.E, p.E, p.down, r, p.down_u + r * PANEL * p.E);
  });
}

// The same for the way back: weights as they stand, B where A was.
void pack_backward(const Layers& l, const Packed& p) {
  const int64_t first = l.rank[GATE];
  shared_out(p.D / PANEL, [&](int64_t n) {
    pack(l.w[GATE], l.stride[GATE], l.turned[GATE], p.E, n, p.gate + n * PANEL * p.E);
    pack(l.w[UP], l.stride[UP], l.turned[UP], p.E, n, p.up + n * PANEL * p.E);
    Half* v = p.pair_more + n * PANEL * p.P;
    clear(v, p.P);
    put_small(l.a[GATE], p.D, 1, first, p.D, 1.0f, 0, 0, n, v);
    put_small(l.a[UP], p.D, 1, l.rank[UP], p.D, 1.0f, first, 0, n, v);
  });
  shared_out(p.E / PANEL, [&](int64_t n) {
    pack(l.w[DOWN], l.stride[DOWN], l.turned[DOWN], p.D, n, p.out + n * PANEL * p.D);
    pack_small(l.a[DOWN], p.E, 1, p.down, p.E, n, p.down_u + n * PANEL * p.R);
  });
  shared_out(p.P / PANEL, [&](int64_t r) {
    for (int i : {GATE, UP}) {
      Half* u = (i == GATE ? p.pair_u : p.pair_v) + r * PANEL * p.E;
      clear(u, p.E);
      put_small(l.b[i], l.rank[i], 1, p.E, l.rank[i], l.scale[i], 0, i == GATE ? 0 : first, r, u);
    }
  });
  shared_out(p.R / PANEL, [&](int64_t r) {
    clear(p.down_v + r * PANEL * p.D, p.D);
    put_small(l.b[DOWN], p.down, 1, p.D, p.down, l.scale[DOWN], 0, 0, r, p.down_v + r * PANEL * p.D);
  });
}

void forward_block(const Packed& p, const Left& x, int64_t rows, Half* g, Half* u, Half* y, Half* h, Half* h_down) {
  const int64_t all = x.subs * SUB;
  float *c = sums_of.get((x.subs + 1) * SUB * PANEL), *gates = gate_sums_of.get(x.subs * SUB * PANEL);
  Half* act = act_of.get(all * p.E);
  low_rank(x, p.pair_more, nullptr, nullptr, p.D, p.pair, p.P, 1.0f, c, h);
  GatedOut gated;
  for (int64_t n = 0; n < p.E / PANEL; n++) {
    const int64_t at = n * PANEL;
    panel_sums(x, p.D, p.gate + at * p.D, Low{h, p.P, p.pair, p.pair_u + at * p.P}, gates, false, false, gated,
               [](int64_t, const float*) {});
    panel_sums(x, p.D, p.up + at * p.D, Low{h, p.P, p.pair, p.pair_v + at * p.P}, c, true, false, gated,
               [&](int64_t s, const float* sums) {
                 const int64_t to = s * SUB * p.E + at;
                 gated.start(gates + s * SUB * PANEL, sums, g + to, u + to, act + to,
                             std::clamp<int64_t>(rows - s * SUB, 0, SUB), p.E);
               });
  }
  gated.rest();
  settled();
  const Left left{act, p.E, x.subs};
  low_rank(left, p.down_u, nullptr, nullptr, p.E, p.down, p.R, 1.0f, c, h_down);
  Leaving leaving;
  for (int64_t n = 0; n < p.D / PANEL; n++)
    panel_sums(left, p.E, p.out + n * PANEL * p.E, Low{h_down, p.R, p.down, p.down_v + n * PANEL * p.R}, c, true, false,
               leaving,
               [&](int64_t s, const float* sums) {
                 leaving.start(sums, 1.0f, nullptr, std::min(SUB, rows - s * SUB), y + s * SUB * p.D + n * PANEL, p.D);
               });
  leaving.rest();
}

// Sums of gradients that a thread holds: of A of gate and up, A of down, B of gate, up and down, transposed.
struct Gradients {
  int64_t pair, down;  // ranks in whole 16s
  float *a, *a_down, *gate, *up, *b_down;
  static int64_t size(const Packed& p) { return ::up(p.pair, 16) * (p.D + 2 * p.E) + ::up(p.down, 16) * (p.D + p.E); }
  Gradients(const Packed& p, float* at) : pair(::up(p.pair, 16)), down(::up(p.down, 16)) {
    auto take = [&](int64_t count) { return std::exchange(at, at + count); };
    a = take(pair * p.D), a_down = take(down * p.E);
    gate = take(pair * p.E), up = take(pair * p.E), b_down = take(down * p.D);
  }
};

struct Kept {  // from the way forward
  const Half *g, *u, *h, *h_down;
};

void backward_block(const Packed& p, const Left& dy, const Left& x, int64_t rows, const Kept& kept, Half* dx,
                    const Gradients& sums) {
  const int64_t all = x.subs * SUB;
  float* c = sums_of.get((x.subs + 1) * SUB * PANEL);
  Half *act = act_of.get(all * p.E), *dg = gate_of.get(all * p.E), *du = up_of.get(all * p.E);
  Half *dh = low_of.get(all * p.P), *dh_down = low_down_of.get(all * p.R);
  low_rank(dy, p.down_v, nullptr, nullptr, p.D, p.down, p.R, 1.0f, c, dh_down);
  GatedBack gated;
  for (int64_t n = 0; n < p.E / PANEL; n++)
    panel_sums(dy, p.D, p.out + n * PANEL * p.D, Low{dh_down, p.R, p.down, p.down_u + n * PANEL * p.R}, c, true, false,
               gated,
               [&](int64_t s, const float* from) {
                 const int64_t at = s * SUB * p.E + n * PANEL;
                 gated.start(from, kept.g + at, kept.u + at, dg + at, du + at, act + at,
                             std::clamp<int64_t>(rows - s * SUB, 0, SUB), p.E);
               });
  gated.rest();
  auto add = [&](const Half* h, int64_t R, int64_t rank, const Half* right, int64_t stride, int64_t N, float* to,
                 const Half* other, float* too) {
    const Half* left = turned(h, all, R, rank);
    settled();
    gradient(left, rank, right, stride, all, N, to);
    if (other) gradient(left, rank, other, stride, all, N, too);
  };
  add(dh_down, p.R, p.down, act, p.E, p.E, sums.a_down, nullptr, nullptr);
  add(kept.h_down, p.R, p.down, dy.x, dy.stride, p.D, sums.b_down, nullptr, nullptr);
  const Left by_g{dg, p.E, x.subs}, by_u{du, p.E, x.subs};
  low_rank(by_g, p.pair_u, &by_u, p.pair_v, p.E, p.pair, p.P, 1.0f, c, dh);
  Leaving leaving;
  for (int64_t n = 0; n < p.D / PANEL; n++) {
    panel_sums(by_g, p.E, p.gate + n * PANEL * p.E, Low{}, c, false, false, leaving,
               [](int64_t, const float*) {});
    panel_sums(by_u, p.E, p.up + n * PANEL * p.E, Low{dh, p.P, p.pair, p.pair_more + n * PANEL * p.P}, c, false, true,
               leaving,
               [&](int64_t s, const float* from) {
                 leaving.start(from, 1.0f, nullptr, std::min(SUB, rows - s * SUB), dx + s * SUB * p.D + n * PANEL, p.D);
               });
  }
  leaving.rest();
  add(dh, p.P, p.pair, x.x, x.stride, p.D, sums.a, nullptr, nullptr);
  add(kept.h, p.P, p.pair, dg, p.E, p.E, sums.gate, du, sums.up);
}

int64_t rows_of_pair(int64_t E) { return std::max<int64_t>(SUB, PAIR_BYTES / (4 * E) / SUB * SUB); }

// to[i * down + r * right] = factor x the sum over threads of row `first` + r, column i, of what lies at `at` in each.
void reduce(const float* parts, int64_t each, int64_t used, int64_t at, int64_t first, int64_t rank, int64_t N,
            float factor, int64_t down, int64_t right, float* to) {
#pragma omp parallel for num_threads(used)
  for (int64_t r = 0; r < rank; r++)
    for (int64_t i = 0; i < N; i++) {
      float sum = 0;
      for (int64_t t = 0; t < used; t++) sum += parts[t * each + at + (first + r) * N + i];
      to[i * down + r * right] = factor * sum;
    }
}

}  // namespace

extern "C" {

// x [T, D] -> g, u [T, E], y [T, D], h [T in whole 32s, P], h_down [the same, R]; P: ranks of gate and up in whole 32s,
// R: that of down. `packed`: room for 3 D E + P (D + 2 E) + R (D + E) numbers.
void gated_forward(const Layers* l, const Half* x, int64_t x_stride, int64_t T, int64_t threads, Half* g, Half* u,
                   Half* y, Half* h, Half* h_down, Half* packed) {
  const Packed p(*l, packed);
#pragma omp parallel num_threads(threads)
  {
    Tiles tiles;
    pack_forward(*l, p);
#pragma omp barrier
    settled();
    in_blocks(T, rows_of_block(p.E), [&](int64_t at, int64_t rows) {
      int64_t stride = x_stride;
      const Half* from = filled(tail_of, x + at * x_stride, stride, rows, p.D);
      settled();
      forward_block(p, {from, stride, up(rows, SUB) / SUB}, rows, g + at * p.E, u + at * p.E, y + at * p.D,
                    h + at * p.P, h_down + at * p.R);
    });
  }
}

// dx [T, D], and in fp32 da [rank, ...] and db [..., rank] of gate, up and down. `parts`: room for
// 16s(P) (D + 2 E) + 16s(R) (D + E) numbers of each thread, ranks filled up to whole 16s.
void gated_backward(const Layers* l, const Half* dy, const Half* x, int64_t dy_stride, int64_t x_stride, int64_t T,
                    int64_t threads, const Half* g, const Half* u, const Half* h, const Half* h_down, Half* dx,
                    float* const* da, float* const* db, Half* packed, float* parts) {
  const Packed p(*l, packed);
  const int64_t each = Gradients::size(p);
  int64_t used = 1;
#pragma omp parallel num_threads(threads)
  {
    Tiles tiles;
    pack_backward(*l, p);
    float* own = parts + omp_get_thread_num() * each;
    if (omp_get_thread_num() == 0) used = omp_get_num_threads();
    std::fill(own, own + each, 0.0f);
#pragma omp barrier
    settled();
    in_blocks(T, rows_of_pair(p.E), [&](int64_t at, int64_t rows) {
      int64_t dy_step = dy_stride, x_step = x_stride;
      const Half* dy_rows = filled(tail_of, dy + at * dy_stride, dy_step, rows, p.D);
      const Half* x_rows = filled(other_tail_of, x + at * x_stride, x_step, rows, p.D);
      settled();
      const int64_t subs = up(rows, SUB) / SUB;
      backward_block(p, {dy_rows, dy_step, subs}, {x_rows, x_step, subs}, rows,
                     {g + at * p.E, u + at * p.E, h + at * p.P, h_down + at * p.R}, dx + at * p.D, Gradients(p, own));
    });
  }
  const Gradients at(p, parts);
  auto place = [&](const float* part) { return part - parts; };
  const int64_t first = l->rank[GATE];
  reduce(parts, each, used, place(at.a), 0, first, p.D, 1.0f, 1, p.D, da[GATE]);
  reduce(parts, each, used, place(at.a), first, l->rank[UP], p.D, 1.0f, 1, p.D, da[UP]);
  reduce(parts, each, used, place(at.a_down), 0, p.down, p.E, 1.0f, 1, p.E, da[DOWN]);
  reduce(parts, each, used, place(at.gate), 0, first, p.E, l->scale[GATE], first, 1, db[GATE]);
  reduce(parts, each, used, place(at.up), first, l->rank[UP], p.E, l->scale[UP], l->rank[UP], 1, db[UP]);
  reduce(parts, each, used, place(at.b_down), 0, p.down, p.D, l->scale[DOWN], p.down, 1, db[DOWN]);
}
}
