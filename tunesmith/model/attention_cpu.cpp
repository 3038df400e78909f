// Attention of a pack on the CPU in bf16, forward and backward (model/attention_native.py builds and calls it).
//
// A token t sees the keys s <= t < end[s] of its row: a pack is laid out depth first, so that `end` alone tells
// the tree of segments. A root (a segment that hangs on nothing, with all below it) and a head are one task.
// Tokens of a root are taken in panels of 64; a panel of keys meets the panels of queries that see any of it.
//
//   forward    online softmax over panels of keys (Milakov and Gimelshein 2018, arXiv 1805.02867)
//   backward   probabilities again from the softmax's denominator (Dao et al. 2022, arXiv 2205.14135), all of it
//              transposed, keys as rows: what a product needs as its left side is then there as it was computed
//
//     pt = exp(scale k q^T - lse)     dst = pt * (v dout^T - delta)     delta = sum of dout * out over D
//     dv = pt dout                    dk = scale dst q                  dq^T = scale k^T dst
//
// Products are oneDNN's (AMX or AVX-512 in bf16, sums in fp32). Their right side is packed in pairs: element
// (k, n) of a [K, N] matrix stands at [k / 2][n][k % 2].

#include <ATen/cpu/vec/vec.h>
#include <c10/core/ScalarType.h>
#include <c10/util/BFloat16.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>

namespace at::native::cpublas {
// As in ATen/native/CPUBlas.h, which takes seconds to compile.
TORCH_API void brgemm(int64_t m, int64_t n, int64_t k, int64_t lda, int64_t ldb, int64_t ldc, bool add,
                      const c10::BFloat16* a, const c10::BFloat16* b, float* c, bool packed);
TORCH_API void brgemm_release(bool packed);
TORCH_API bool could_pack(c10::ScalarType type);
}  // namespace at::native::cpublas

namespace {

using Half = c10::BFloat16;
using Vec = at::vec::Vectorized<float>;
constexpr int64_t P = 64;  // tokens of a panel
constexpr float INF = std::numeric_limits<float>::infinity();

struct Shape {
  int64_t heads, kv_heads, size;
  float scale;
};

// Rows of a [tokens, heads, size] tensor with any strides but the last.
struct Rows {
  Half* data;
  int64_t token, head;
  Half* at(int64_t t, int64_t h) const { return data + t * token + h * head; }
};

template <class T>
struct Buffer {
  std::unique_ptr<T[], decltype(&std::free)> data{nullptr, &std::free};
  int64_t held = 0;
  T* get(int64_t count) {
    if (count > held) {
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

void product(int64_t m, int64_t n, int64_t k, const Half* a, const Half* b, float* c, bool add) {
  at::native::cpublas::brgemm(m, n, k, k, n, n, add, a, b, c, true);
}

// Panel p of a root that begins at token `begin`, as [P][size] with zeros after token `stop`.
void take(const Rows& x, int64_t head, int64_t begin, int64_t stop, int64_t p, int64_t size, Half* out) {
  for (int64_t r = 0; r < P; r++) {
    int64_t t = begin + p * P + r;
    if (t < stop)
      std::memcpy(out + r * size, x.at(t, head), size * sizeof(Half));
    else
      std::memset(out + r * size, 0, size * sizeof(Half));
  }
}

// 32-bit numbers: x [rows][columns] -> out [columns][rows].
void turn(const void* x, int64_t rows, int64_t columns, void* out) {
  at::vec::transpose_mxn<float>(static_cast<const float*>(x), columns, static_cast<float*>(out), rows,
                                int(rows), int(columns));
}

// [P][size] -> its transpose [size, P] packed in pairs, which stand side by side already.
void pack_transposed(const Half* x, int64_t size, Half* out) { turn(x, P, size / 2, out); }

// [P][size] -> [P, size] packed in pairs of rows.
void pack_rows(const Half* x, int64_t size, Half* out) {
  auto from = reinterpret_cast<const uint16_t*>(x);
  auto to = reinterpret_cast<uint32_t*>(out);
  for (int64_t r = 0; r < P / 2; r++)
    for (int64_t d = 0; d < size; d++)
      to[r * size + d] = from[2 * r * size + d] | uint32_t(from[(2 * r + 1) * size + d]) << 16;
}

// What pack_rows gives -> [size][P].
void transpose(const Half* pairs, int64_t size, Half* out) { turn(pairs, P / 2, size, out); }

void write(const float* x, int64_t count, float factor, Half* out) {
  auto to = reinterpret_cast<uint16_t*>(out);
  for (int64_t i = 0; i < count; i++) to[i] = uint16_t(rounded(x[i] * factor) >> 16);
}

// What a thread works in; kept from call to call.
struct Work {
  Buffer<Half> rows, packed, more, kt, p, ds, ds_pairs;
  Buffer<float> s, dp, acc, acc2, dq, lse, delta;
  Buffer<int32_t> end, panel_end;
};
thread_local Work work;

// The ends of a root's keys, counted from its beginning, and the largest of each panel.
void ends_of(const int32_t* end, int64_t begin, int64_t length, int64_t panels, Work& w) {
  auto ends = w.end.get(panels * P);
  auto largest = w.panel_end.get(panels);
  for (int64_t p = 0; p < panels; p++) {
    largest[p] = 0;
    for (int64_t r = 0; r < P; r++) {
      int64_t t = p * P + r;
      ends[t] = t < length ? int32_t(end[begin + t] - begin) : 0;
      largest[p] = std::max(largest[p], ends[t]);
    }
  }
}

// Scores of a panel of keys (rows) and one of queries (columns), minus infinity where they aren't seen.
void mask_panel(float* s, const int32_t* end, int64_t query, int64_t key, float hidden) {
  for (int64_t r = 0; r < P; r++) {
    const int64_t from = std::clamp<int64_t>(key + r - query, 0, P), to = std::clamp<int64_t>(end[r] - query, from, P);
    std::fill(s + r * P, s + r * P + from, hidden);
    std::fill(s + r * P + to, s + (r + 1) * P, hidden);
  }
}

// Scores, keys as rows -> exp(score - maximum) packed in pairs; grows maxima and sums, rescales `acc` [size][P].
void softmax_panel(float* s, Half* pairs, float* acc, float* most, float* sum, int64_t size, float scale) {
  const Vec scales(scale), none(-INF), zero(0.0f);
  for (int64_t c = 0; c < P; c += Vec::size()) {
    Vec top = Vec::loadu(most + c);
    const Vec before = top;
    for (int64_t r = 0; r < P; r++) top = at::vec::maximum(top, Vec::loadu(s + r * P + c) * scales);
    top.store(most + c);
    const Vec shift = Vec::blendv(top, zero, top == none);  // nothing seen so far: exp(-inf - 0) = 0
    const Vec factor = (before - shift).exp_u20();
    Vec total = Vec::loadu(sum + c) * factor;
    auto out = reinterpret_cast<uint32_t*>(pairs) + c;
    alignas(64) float two[2][16];
    for (int64_t r = 0; r < P; r += 2) {
      const Vec a = (Vec::loadu(s + r * P + c) * scales - shift).exp_u20();
      const Vec b = (Vec::loadu(s + (r + 1) * P + c) * scales - shift).exp_u20();
      total = total + a + b;
      a.store(two[0]);
      b.store(two[1]);
      for (int64_t x = 0; x < Vec::size(); x++)
        out[r / 2 * P + x] = (rounded(two[1][x]) & 0xffff0000u) | (rounded(two[0][x]) >> 16);
    }
    total.store(sum + c);
    for (int64_t d = 0; d < size; d++) (Vec::loadu(acc + d * P + c) * factor).store(acc + d * P + c);
  }
}

void forward_task(const Rows& q, const Rows& k, const Rows& v, Half* out, float* lse, const int32_t* end,
                  int64_t begin, int64_t stop, int64_t first, int64_t count, const Shape& sh) {
  Work& w = work;
  const int64_t size = sh.size, length = stop - begin, panels = (length + P - 1) / P, one = P * size;
  const int64_t kv = first / (sh.heads / sh.kv_heads);
  ends_of(end, begin, length, panels, w);
  auto rows = w.rows.get(2 * one), qt = w.kt.get(one), paired = rows + one;
  auto keys = w.packed.get(panels * one), vt = w.more.get(panels * one);
  for (int64_t i = 0; i < panels; i++) {
    take(k, kv, begin, stop, i, size, keys + i * one);
    take(v, kv, begin, stop, i, size, rows);
    pack_rows(rows, size, paired);
    transpose(paired, size, vt + i * one);
  }
  auto s = w.s.get(P * P), acc = w.acc.get(2 * one), most = w.lse.get(P), sum = w.delta.get(P);
  auto pairs = w.p.get(P * P);
  const int32_t* ends = w.end.get(0);
  for (int64_t item = 0; item < count * panels; item++) {
    const int64_t head = first + item / panels, j = item % panels;
    take(q, head, begin, stop, j, size, rows);
    pack_transposed(rows, size, qt);
    std::fill(acc, acc + one, 0.0f);
    std::fill(most, most + P, -INF);
    std::fill(sum, sum + P, 0.0f);
    for (int64_t i = 0; i <= j; i++) {
      if (w.panel_end.get(0)[i] <= j * P) continue;
      product(P, P, size, keys + i * one, qt, s, false);
      mask_panel(s, ends + i * P, j * P, i * P, -INF);
      softmax_panel(s, pairs, acc, most, sum, size, sh.scale);
      product(size, P, P, vt + i * one, pairs, acc, true);
    }
    turn(acc, size, P, acc + one);
    for (int64_t r = 0; r < P && j * P + r < length; r++) {
      const int64_t at = (begin + j * P + r) * sh.heads + head;
      write(acc + one + r * size, size, 1.0f / sum[r], out + at * size);
      lse[at] = most[r] + std::log(sum[r]);
    }
  }
}

// pt and dst of a panel of keys (rows) and one of queries (columns), as left sides and dst packed in pairs.
void gradients_panel(const float* s, float* dp, const float* lse, const float* delta, const int32_t* end,
                     int64_t query, int64_t key, float scale, Half* p, Half* ds, Half* pairs) {
  auto p16 = reinterpret_cast<uint16_t*>(p);
  auto d16 = reinterpret_cast<uint16_t*>(ds);
  auto pair32 = reinterpret_cast<uint32_t*>(pairs);
  alignas(64) float prob[2][P], grad[2][P];
  const Vec scales(scale);
  for (int64_t r = 0; r < P; r += 2) {
    for (int64_t two = 0; two < 2; two++) {
      const int64_t row = (r + two) * P;
      const int64_t from = key + r + two - query, to = end[r + two] - query;  // queries that see this key
      if (from >= P || to <= 0 || to <= from) {
        std::memset(prob[two], 0, sizeof prob[two]);
        std::memset(grad[two], 0, sizeof grad[two]);
        continue;
      }
      for (int64_t c = 0; c < P; c += Vec::size()) {
        Vec value = (Vec::loadu(s + row + c) * scales - Vec::loadu(lse + c)).exp_u20();
        value.store(prob[two] + c);
        (value * (Vec::loadu(dp + row + c) - Vec::loadu(delta + c))).store(grad[two] + c);
      }
      for (int64_t c = 0; c < from; c++) prob[two][c] = grad[two][c] = 0.0f;
      for (int64_t c = std::max<int64_t>(to, 0); c < P; c++) prob[two][c] = grad[two][c] = 0.0f;
    }
    for (int64_t two = 0; two < 2; two++)
      for (int64_t c = 0; c < P; c++) p16[(r + two) * P + c] = uint16_t(rounded(prob[two][c]) >> 16);
    for (int64_t c = 0; c < P; c++) {
      uint32_t a = rounded(grad[0][c]), b = rounded(grad[1][c]);
      d16[r * P + c] = uint16_t(a >> 16);
      d16[(r + 1) * P + c] = uint16_t(b >> 16);
      pair32[r / 2 * P + c] = (b & 0xffff0000u) | (a >> 16);
    }
  }
}

struct Gradients {
  Half *dq, *dk, *dv;   // contiguous
  float *dk32, *dv32;   // [T, H, D]: of each head by itself, where heads of a group are separate tasks
};

// Heads first to first + count share the key and value head `kv`.
void backward_task(const Rows& dout, const Rows& q, const Rows& k, const Rows& v, const Half* out,
                   const float* lse, const int32_t* end, int64_t begin, int64_t stop, int64_t first,
                   int64_t count, const Gradients& g, const Shape& sh) {
  Work& w = work;
  const int64_t size = sh.size, length = stop - begin, panels = (length + P - 1) / P, one = P * size;
  const int64_t kv = first / (sh.heads / sh.kv_heads), all = panels * one, padded = panels * P;
  ends_of(end, begin, length, panels, w);
  auto rows = w.rows.get(4 * one);
  auto packs = w.packed.get(4 * count * all);  // of each head: q^T, q, dout^T, dout
  auto dq = w.dq.get(count * all);             // [panel][size][P]
  auto norm = w.lse.get(count * padded), delta = w.delta.get(count * padded);
  std::fill(dq, dq + count * all, 0.0f);
  for (int64_t h = 0; h < count; h++) {
    Half* pack = packs + 4 * h * all;
    for (int64_t j = 0; j < panels; j++) {
      take(q, first + h, begin, stop, j, size, rows);
      pack_transposed(rows, size, pack + j * one);
      pack_rows(rows, size, pack + all + j * one);
      take(dout, first + h, begin, stop, j, size, rows);
      pack_transposed(rows, size, pack + 2 * all + j * one);
      pack_rows(rows, size, pack + 3 * all + j * one);
      for (int64_t r = 0; r < P; r++) {
        const int64_t t = j * P + r, at = (begin + t) * sh.heads + first + h;
        float total = 0.0f;
        if (t < length)
          for (int64_t d = 0; d < size; d++) total += float(rows[r * size + d]) * float(out[at * size + d]);
        delta[h * padded + t] = total;
        norm[h * padded + t] = t < length ? lse[at] : INF;
      }
    }
  }
  auto s = w.s.get(P * P), dp = w.dp.get(P * P), dk = w.acc.get(one), dv = w.acc2.get(one);
  auto p = w.p.get(P * P), ds = w.ds.get(P * P), pairs = w.ds_pairs.get(P * P);
  Half *kr = rows, *vr = rows + one, *kt = rows + 2 * one, *paired = rows + 3 * one;
  for (int64_t i = 0; i < panels; i++) {
    take(k, kv, begin, stop, i, size, kr);
    take(v, kv, begin, stop, i, size, vr);
    pack_rows(kr, size, paired);
    transpose(paired, size, kt);
    const int64_t last = (w.panel_end.get(0)[i] + P - 1) / P;
    bool add = false;
    for (int64_t h = 0; h < count; h++) {
      const Half* pack = packs + 4 * h * all;
      for (int64_t j = i; j < last; j++, add = true) {
        product(P, P, size, kr, pack + j * one, s, false);
        product(P, P, size, vr, pack + 2 * all + j * one, dp, false);
        const int64_t at = h * padded + j * P;
        gradients_panel(s, dp, norm + at, delta + at, w.end.get(0) + i * P, j * P, i * P, sh.scale, p, ds, pairs);
        product(P, size, P, p, pack + 3 * all + j * one, dv, add);
        product(P, size, P, ds, pack + all + j * one, dk, add);
        product(size, P, P, kt, pairs, dq + h * all + j * one, true);
      }
    }
    for (int64_t r = 0; r < P && i * P + r < length; r++) {
      const int64_t t = begin + i * P + r;
      if (g.dk32 != nullptr) {
        const int64_t at = (t * sh.heads + first) * size;
        for (int64_t d = 0; d < size; d++) g.dk32[at + d] = dk[r * size + d] * sh.scale;
        std::memcpy(g.dv32 + at, dv + r * size, size * 4);
      } else {
        const int64_t at = (t * sh.kv_heads + kv) * size;
        write(dk + r * size, size, sh.scale, g.dk + at);
        write(dv + r * size, size, 1.0f, g.dv + at);
      }
    }
  }
  for (int64_t item = 0; item < count * panels; item++) {
    turn(dq + item * one, size, P, dk);
    for (int64_t r = 0, t = item % panels * P; r < P && t < length; r++, t++)
      write(dk + r * size, size, sh.scale, g.dq + ((begin + t) * sh.heads + first + item / panels) * size);
  }
}

}  // namespace

extern "C" {

// Whether this processor has products in bf16; without them a call would end the process.
int attention_supported() { return at::native::cpublas::could_pack(c10::ScalarType::BFloat16); }

// strides: of tokens and heads of each tensor, in elements. roots [R, 2]: where each begins and ends, the one
// with the most work first. out [T, H, D], lse [T, H].
void attention_forward(Half* q, Half* k, Half* v, const int64_t* strides, const int32_t* end,
                       const int64_t* roots, int64_t count, int64_t heads, int64_t kv_heads, int64_t size,
                       float scale, int64_t threads, int64_t each, Half* out, float* lse) {
  const Rows qr{q, strides[0], strides[1]}, kr{k, strides[2], strides[3]}, vr{v, strides[4], strides[5]};
  const Shape shape{heads, kv_heads, size, scale};
  const int64_t parts = heads / each;
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(dynamic) nowait
    for (int64_t task = 0; task < count * parts; task++) {
      const int64_t* root = roots + 2 * (task / parts);
      forward_task(qr, kr, vr, out, lse, end, root[0], root[1], task % parts * each, each, shape);
    }
    at::native::cpublas::brgemm_release(true);
  }
}

// dk32 and dv32 [T, H, D]: null, or room for the gradients of each head, which are then summed over a group.
void attention_backward(Half* dout, Half* q, Half* k, Half* v, const int64_t* strides, const Half* out,
                        const float* lse, const int32_t* end, const int64_t* roots, int64_t count,
                        int64_t tokens, int64_t heads, int64_t kv_heads, int64_t size, float scale,
                        int64_t threads, Half* dq, Half* dk, Half* dv, float* dk32, float* dv32) {
  const Rows dr{dout, strides[6], strides[7]};
  const Rows qr{q, strides[0], strides[1]}, kr{k, strides[2], strides[3]}, vr{v, strides[4], strides[5]};
  const Shape shape{heads, kv_heads, size, scale};
  const Gradients gradients{dq, dk, dv, dk32, dv32};
  const int64_t group = heads / kv_heads, each = dk32 != nullptr ? 1 : group, parts = heads / each;
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < count * parts; task++) {
      const int64_t* root = roots + 2 * (task / parts);
      backward_task(dr, qr, kr, vr, out, lse, end, root[0], root[1], task % parts * each, each, gradients, shape);
    }
    at::native::cpublas::brgemm_release(true);
    if (dk32 != nullptr) {
#pragma omp for
      for (int64_t row = 0; row < tokens * kv_heads; row++)
        for (int64_t d = 0; d < size; d++) {
          float sum_k = 0.0f, sum_v = 0.0f;
          for (int64_t h = 0; h < group; h++) {
            sum_k += dk32[(row * group + h) * size + d];
            sum_v += dv32[(row * group + h) * size + d];
          }
          dk[row * size + d] = Half(sum_k);
          dv[row * size + d] = Half(sum_v);
        }
    }
  }
}
}
