// Attention of a pack on the CPU in bf16, forward and backward (model/attention_native.py builds and calls it).
//
// A token t sees the keys s <= t < end[s] of its row: a pack is laid out depth first, so that `end` alone tells
// the tree of segments. A root (a segment that hangs on nothing, with all below it) and a head are one task.
// Tokens of a root are taken in panels of 32; a panel of keys meets the panels of queries that see any of it.
//
//   forward    online softmax over panels of keys (Milakov and Gimelshein 2018, arXiv 1805.02867)
//   backward   probabilities again from the softmax's denominator (Dao et al. 2022, arXiv 2205.14135), all of it
//              transposed, keys as rows: what a product needs as its left side is then there as it was computed
//
//     pt = exp(scale k q^T - lse)     dst = pt * (v dout^T - delta)     delta = sum of dout * out over D
//     dv = pt dout                    dk = scale dst q                  dq^T = scale k^T dst
//
// Products' right sides are packed in pairs: element (k, n) of a [K, N] matrix stands at [k / 2][n][k % 2].

#include <ATen/cpu/vec/vec.h>
#include <c10/core/ScalarType.h>

#include "products_cpu.h"  // after torch's, to which a global name Half is not known

#include <cmath>
#include <limits>

namespace at::native::cpublas {
// As in ATen/native/CPUBlas.h, which takes seconds to compile.
TORCH_API void brgemm(int64_t m, int64_t n, int64_t k, int64_t lda, int64_t ldb, int64_t ldc, bool add,
                      const c10::BFloat16* a, const c10::BFloat16* b, float* c, bool packed);
TORCH_API void brgemm_release(bool packed);
TORCH_API bool could_pack(c10::ScalarType type);
}  // namespace at::native::cpublas

namespace {

constexpr int64_t P = 32;  // tokens of a panel: a larger one is cut by the diagonal and by ends of rows more often
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

// Head sizes in 32s have products here; oneDNN's, which the others have, cost as much in calls as in sums.
bool tiled(int64_t size) { return size % 32 == 0; }

void product(int64_t m, int64_t n, int64_t k, const Half* a, const Half* b, float* c, bool add) {
  if (!tiled(k) || !tiled(n) || !tiled(m)) return at::native::cpublas::brgemm(m, n, k, k, n, n, add, a, b, c, true);
  for (int64_t row = 0; row < m; row += BLOCK)
    product<false>(a + row * k, k, k, BLOCK, reinterpret_cast<const uint32_t*>(b), n, c + row * n, add);
}

// The tiles of a thread for as long as it has tasks.
struct Turn {
  const bool ours;
  std::unique_ptr<Tiles> tiles;
  explicit Turn(int64_t size) : ours(tiled(size)), tiles(ours ? new Tiles : nullptr) {}
  ~Turn() {
    if (!ours) at::native::cpublas::brgemm_release(true);
  }
};

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

// What a thread works in; kept from call to call.
struct Work {
  Buffer<Half> rows, packed, more, kt, p, ds, ds_pairs;
  Buffer<float> s, dp, acc, acc2, dq, lse, delta;
  Buffer<int32_t> end, first_end, last_end;
};
thread_local Work work;

// What sees a root's keys; tokens are counted from its beginning.
struct Seen {
  const int32_t *end, *first, *last;  // of each key; of each panel the smallest and the largest

  // Whether a query of panel j sees a key of panel i; whether each sees each.
  bool any(int64_t i, int64_t j) const { return last[i] > j * P; }
  bool all(int64_t i, int64_t j) const { return i < j && first[i] >= (j + 1) * P; }
  // Of 16 queries those that see the key.
  __mmask16 of(int64_t key, int64_t query) const {
    const int64_t from = std::clamp<int64_t>(key - query, 0, LANES);
    const int64_t to = std::clamp<int64_t>(end[key] - query, from, LANES);
    return __mmask16((1u << to) - (1u << from));
  }
};

Seen seen_of(const int32_t* end, int64_t begin, int64_t length, int64_t panels, Work& w) {
  auto ends = w.end.get(panels * P), first = w.first_end.get(panels), last = w.last_end.get(panels);
  for (int64_t p = 0; p < panels; p++) {
    auto of = ends + p * P;
    for (int64_t r = 0, t = p * P; r < P; r++, t++) of[r] = t < length ? int32_t(end[begin + t] - begin) : 0;
    first[p] = *std::min_element(of, of + P), last[p] = *std::max_element(of, of + P);
  }
  return {ends, first, last};
}

// Scores of panel i of keys (rows) and j of queries (columns): minus infinity where they aren't seen.
void mask_panel(float* s, const Seen& seen, int64_t i, int64_t j) {
  for (int64_t r = 0; r < P; r++)
    for (int64_t c = 0; c < P; c += LANES)
      _mm512_mask_storeu_ps(s + r * P + c, _knot_mask16(seen.of(i * P + r, j * P + c)), _mm512_set1_ps(-INF));
}

// x y, summed in fp32; sizes in 16s.
inline float inner(const Half* x, const Half* y, int64_t size) {
  __m512 sum = _mm512_setzero_ps();
  for (int64_t d = 0; d < size; d += 32) {
    const __mmask32 there = size - d < 32 ? 0xffff : 0xffffffff;
    sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_maskz_loadu_epi16(there, x + d),
                           (__m512bh)_mm512_maskz_loadu_epi16(there, y + d));
  }
  return _mm512_reduce_add_ps(sum);
}

// Scores, keys as rows -> exp(score - maximum) packed in pairs; grows maxima (in powers of two) and sums, rescales
// `acc` [size][P].
void softmax_panel(const float* s, Half* paired, float* acc, float* most, float* sum, int64_t size, float scale) {
  const __m512 by = _mm512_set1_ps(scale * LOG2_E);
  for (int64_t c = 0; c < P; c += LANES) {
    const __m512 before = _mm512_loadu_ps(most + c);
    __m512 tops[4] = {before, before, before, before};
    for (int64_t r = 0; r < P; r++)  // four at a time: a maximum waits for the one before
      tops[r % 4] = _mm512_max_ps(tops[r % 4], _mm512_mul_ps(_mm512_loadu_ps(s + r * P + c), by));
    const __m512 top = _mm512_max_ps(_mm512_max_ps(tops[0], tops[1]), _mm512_max_ps(tops[2], tops[3]));
    _mm512_storeu_ps(most + c, top);
    // Nothing seen so far: 2^(-inf - 0) = 0.
    const __m512 shift = _mm512_maskz_mov_ps(_mm512_cmpneq_ps_mask(top, _mm512_set1_ps(-INF)), top);
    __m512 totals[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    auto out = reinterpret_cast<uint32_t*>(paired) + c;
    for (int64_t r = 0; r < P; r += 2) {
      const __m512 a = power_of_two(_mm512_fmsub_ps(_mm512_loadu_ps(s + r * P + c), by, shift));
      const __m512 b = power_of_two(_mm512_fmsub_ps(_mm512_loadu_ps(s + (r + 1) * P + c), by, shift));
      totals[0] = _mm512_add_ps(totals[0], a);
      totals[1] = _mm512_add_ps(totals[1], b);
      _mm512_storeu_si512(out + r / 2 * P, pairs(a, b));
    }
    const __m512 factor = power_of_two(_mm512_sub_ps(before, shift)), total = _mm512_add_ps(totals[0], totals[1]);
    _mm512_storeu_ps(sum + c, _mm512_fmadd_ps(_mm512_loadu_ps(sum + c), factor, total));
    if (_mm512_cmpeq_ps_mask(before, top) == 0xffff) continue;
    for (int64_t d = 0; d < size; d++)
      _mm512_storeu_ps(acc + d * P + c, _mm512_mul_ps(_mm512_loadu_ps(acc + d * P + c), factor));
  }
}

void forward_task(const Rows& q, const Rows& k, const Rows& v, Half* out, float* lse, const int32_t* end,
                  int64_t begin, int64_t stop, int64_t first, int64_t count, const Shape& sh) {
  Work& w = work;
  const int64_t size = sh.size, length = stop - begin, panels = (length + P - 1) / P, one = P * size;
  const int64_t kv = first / (sh.heads / sh.kv_heads);
  const Seen seen = seen_of(end, begin, length, panels, w);
  auto rows = w.rows.get(2 * one), qt = w.kt.get(one), paired = rows + one;
  auto keys = w.packed.get(panels * one), vt = w.more.get(panels * one);
  for (int64_t i = 0; i < panels; i++) {
    take(k, kv, begin, stop, i, size, keys + i * one);
    take(v, kv, begin, stop, i, size, rows);
    pack_rows(rows, size, paired);
    transpose(paired, size, vt + i * one);
  }
  auto s = w.s.get(P * P), acc = w.acc.get(2 * one), most = w.lse.get(P), sum = w.delta.get(P);
  auto paired_p = w.p.get(P * P);
  for (int64_t item = 0; item < count * panels; item++) {
    const int64_t head = first + item / panels, j = item % panels;
    take(q, head, begin, stop, j, size, rows);
    pack_transposed(rows, size, qt);
    std::fill(acc, acc + one, 0.0f);
    std::fill(most, most + P, -INF);
    std::fill(sum, sum + P, 0.0f);
    for (int64_t i = 0; i <= j; i++) {
      if (!seen.any(i, j)) continue;
      product(P, P, size, keys + i * one, qt, s, false);
      if (!seen.all(i, j)) mask_panel(s, seen, i, j);
      softmax_panel(s, paired_p, acc, most, sum, size, sh.scale);
      product(size, P, P, vt + i * one, paired_p, acc, true);
    }
    turn(acc, size, P, acc + one);
    for (int64_t r = 0; r < P && j * P + r < length; r++) {
      const int64_t at = (begin + j * P + r) * sh.heads + head;
      write(acc + one + r * size, size, 1.0f / sum[r], out + at * size);
      lse[at] = most[r] / LOG2_E + std::log(sum[r]);
    }
  }
}

// pt and dst of panel i of keys (rows) and j of queries (columns), as left sides and dst packed in pairs.
void gradients_panel(const float* s, const float* dp, const float* lse, const float* delta, const Seen& seen,
                     int64_t i, int64_t j, float scale, Half* p, Half* ds, Half* paired) {
  const bool whole = seen.all(i, j);
  const __m512 by = _mm512_set1_ps(scale * LOG2_E), unit = _mm512_set1_ps(LOG2_E);
  for (int64_t r = 0; r < P; r += 2)
    for (int64_t c = 0; c < P; c += 2 * LANES) {
      __m512 prob[2][2], grad[2][2];
      for (int64_t two = 0; two < 2; two++)
        for (int64_t half = 0; half < 2; half++) {
          const int64_t column = c + half * LANES, at = (r + two) * P + column;
          const __mmask16 these = whole ? 0xffff : seen.of(i * P + r + two, j * P + column);
          if (!these) {
            prob[two][half] = grad[two][half] = _mm512_setzero_ps();
            continue;
          }
          const __m512 norm = _mm512_mul_ps(_mm512_loadu_ps(lse + column), unit);
          const __m512 value = power_of_two(_mm512_fmsub_ps(_mm512_loadu_ps(s + at), by, norm));
          prob[two][half] = _mm512_maskz_mov_ps(these, value);
          const __m512 apart = _mm512_sub_ps(_mm512_loadu_ps(dp + at), _mm512_loadu_ps(delta + column));
          grad[two][half] = _mm512_maskz_mul_ps(these, value, apart);
        }
      for (int64_t two = 0; two < 2; two++) {
        _mm512_storeu_si512(p + (r + two) * P + c, halves(prob[two][0], prob[two][1]));
        _mm512_storeu_si512(ds + (r + two) * P + c, halves(grad[two][0], grad[two][1]));
      }
      for (int64_t half = 0; half < 2; half++)
        _mm512_storeu_si512(reinterpret_cast<uint32_t*>(paired) + r / 2 * P + c + half * LANES,
                            pairs(grad[0][half], grad[1][half]));
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
  const Seen seen = seen_of(end, begin, length, panels, w);
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
        delta[h * padded + t] = t < length ? inner(rows + r * size, out + at * size, size) : 0.0f;
        norm[h * padded + t] = t < length ? lse[at] : INF;
      }
    }
  }
  auto s = w.s.get(P * P), dp = w.dp.get(P * P), dk = w.acc.get(one), dv = w.acc2.get(one);
  auto p = w.p.get(P * P), ds = w.ds.get(P * P), ds_pairs = w.ds_pairs.get(P * P);
  Half *kr = rows, *vr = rows + one, *kt = rows + 2 * one, *paired = rows + 3 * one;
  for (int64_t i = 0; i < panels; i++) {
    take(k, kv, begin, stop, i, size, kr);
    take(v, kv, begin, stop, i, size, vr);
    pack_rows(kr, size, paired);
    transpose(paired, size, kt);
    const int64_t last = (seen.last[i] + P - 1) / P;
    bool add = false;
    for (int64_t h = 0; h < count; h++) {
      const Half* pack = packs + 4 * h * all;
      for (int64_t j = i; j < last; j++, add = true) {
        product(P, P, size, kr, pack + j * one, s, false);
        product(P, P, size, vr, pack + 2 * all + j * one, dp, false);
        const int64_t at = h * padded + j * P;
        gradients_panel(s, dp, norm + at, delta + at, seen, i, j, sh.scale, p, ds, ds_pairs);
        product(P, size, P, p, pack + 3 * all + j * one, dv, add);
        product(P, size, P, ds, pack + all + j * one, dk, add);
        product(size, P, P, kt, ds_pairs, dq + h * all + j * one, true);
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

// Whether there are products for heads of this size: without them a call would end the process.
int attention_fits(int64_t size) {
  return tiled(size) || (size % 16 == 0 && at::native::cpublas::could_pack(c10::ScalarType::BFloat16));
}

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
    Turn turn(size);
#pragma omp for schedule(dynamic) nowait
    for (int64_t task = 0; task < count * parts; task++) {
      const int64_t* root = roots + 2 * (task / parts);
      forward_task(qr, kr, vr, out, lse, end, root[0], root[1], task % parts * each, each, shape);
    }
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
    Turn turn(size);
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < count * parts; task++) {
      const int64_t* root = roots + 2 * (task / parts);
      backward_task(dr, qr, kr, vr, out, lse, end, root[0], root[1], task % parts * each, each, gradients, shape);
    }
    if (dk32 != nullptr) {
#pragma omp for
      for (int64_t row = 0; row < tokens * kv_heads; row++)
        for (auto [from, to] : {std::pair(dk32, dk), std::pair(dv32, dv)}) {
          float* sums = from + row * group * size;
          for (int64_t h = 1; h < group; h++)
            for (int64_t d = 0; d < size; d++) sums[d] += sums[h * size + d];
          write(sums, size, 1.0f, to + row * size);
        }
    }
  }
}
}
