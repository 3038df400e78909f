// The loss at the output head in bf16 on a CPU, and the gradient of what goes into it
// (model/head_native.py). Logits exist 32 rows by some columns at a time.
//
//   z = cap tanh(scale h W^T / cap)            loss = log sum_j exp(z_j) - z_y, smoothed: - e mean_j(z_j - z_y) more
//   dh = scale (sum_j g_j z'_j W_j)            g_j = p_j - e / V, and at the label y: p_y - 1 + e - e / V
//
// A softmax's sum is a factor of its row: sum_j exp(z_j) W_j needs it at the end alone. So one pass over the weight
// does it, as attention's online softmax would with the weight as keys and values (Milakov and Gimelshein 2018, arXiv
// 1805.02867): a block of the weight is packed both ways round into a thread's second-level cache and meets all rows,
//
//   u = exp(h W^T - z_y) in bf16               sums += u W
//
// The label's own logit, known beforehand, takes the running maximum's place: what is near it is the more exact, and
// nothing is scaled anew. Where a logit lies so far above that the sums could overflow, the rows are done once more
// with the maximum. The label's own part is left out of the sums and added exactly: p_y - 1 would be lost in rounding.
// Where there are tiles (AMX), exponentials are taken while they work. Threads share the vocabulary: each reads its
// part of the weight alone.

#include "panels_cpu.h"

#include <omp.h>

#include <atomic>
#include <cmath>
#include <limits>

namespace {

constexpr float LN_2 = 0.69314718f;       // exponentials are powers of two here
constexpr float FAR = 64.0f;              // above the label's logit, in those units
constexpr int64_t BLOCK_BYTES = 1179648;  // of the weight, both ways round, kept in the second-level cache
constexpr int64_t STATES = 3 * LANES;     // of a row, a vector each: largest, sum of exponentials, sum

thread_local Buffer<Half> left_of, block_of, powers_of;
thread_local Buffer<float> parts_of, states_of, rows_of, sums_of, columns_of;
thread_local Buffer<int32_t> targets_of;

struct Head {
  const Half* weight;
  int64_t stride, V, D;
  float scale, cap, smoothing;
};

// What is known of a chunk's rows beforehand. `reference`: what is subtracted from logits; `shift`: how far it lies
// above the label's own; `slope`: the cap's derivative there.
struct Rows {
  int64_t count, subs;
  Half* left;  // [subs][D / 32][32][32]
  float *reference, *shift, *slope;
  int32_t* target;
};

struct Capped {
  __m512 value, slope;
};

// tanh and its derivative at x: 1 - 2 / (q + 1), 4 q / (q + 1)^2 with q = exp(2 x).
inline Capped capped(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f), most = _mm512_set1_ps(60.0f);
  const __m512 q = power_of_two(_mm512_min_ps(most, _mm512_mul_ps(x, _mm512_set1_ps(2 * LOG2_E))));
  const __m512 inverse = _mm512_div_ps(one, _mm512_add_ps(q, one));
  const __m512 twice = _mm512_add_ps(inverse, inverse);
  return {_mm512_sub_ps(one, twice), _mm512_mul_ps(_mm512_mul_ps(q, twice), twice)};
}

// Sums of 32 rows and 32 columns of the vocabulary on their way to exponentials: a few rows at a time between tile
// products, which leave the vector units idle.
template <bool CAPPED, bool SMOOTHED>
struct Leaving : InTurns<Leaving<CAPPED, SMOOTHED>> {
  using InTurns<Leaving>::at;
  const float *c = nullptr, *reference = nullptr;
  const int32_t* target = nullptr;
  float* states = nullptr;
  Half* out = nullptr;
  __m512i low, high;
  const __m512 by, inner;

  explicit Leaving(const Head& h)
      : by(_mm512_set1_ps(LOG2_E * (CAPPED ? h.cap : h.scale))), inner(_mm512_set1_ps(CAPPED ? h.scale / h.cap : 0)) {}
  void start(const float* sums, const Rows& rows, int64_t first, int64_t column, float* own, Half* to) {
    c = sums, reference = rows.reference + first, target = rows.target + first, states = own, out = to, at = 0;
    low = _mm512_add_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
                           _mm512_set1_epi32(int(column)));
    high = _mm512_add_epi32(low, _mm512_set1_epi32(16));
  }
  void row(int64_t r) {
    const __m512 from = _mm512_set1_ps(reference[r]);
    const __m512i label = _mm512_set1_epi32(target[r]);
    float* own = states + r * STATES;
    __m512 x[2] = {_mm512_load_ps(c + r * PANEL), _mm512_load_ps(c + r * PANEL + 16)}, power[2], slope[2];
    for (int i = 0; i < 2; i++) {
      if (CAPPED) {
        const Capped found = capped(_mm512_mul_ps(x[i], inner));
        x[i] = found.value, slope[i] = found.slope;
      }
      x[i] = _mm512_fmsub_ps(x[i], by, from);
      power[i] = _mm512_maskz_mov_ps(_mm512_cmpneq_epi32_mask(label, i ? high : low), power_of_two(x[i]));
    }
    _mm512_store_ps(own, _mm512_max_ps(_mm512_max_ps(x[0], x[1]), _mm512_load_ps(own)));
    _mm512_store_ps(own + 16, _mm512_add_ps(_mm512_add_ps(power[0], power[1]), _mm512_load_ps(own + 16)));
    if (SMOOTHED) _mm512_store_ps(own + 32, _mm512_add_ps(_mm512_add_ps(x[0], x[1]), _mm512_load_ps(own + 32)));
    if (CAPPED)
      for (int i = 0; i < 2; i++) power[i] = _mm512_mul_ps(power[i], slope[i]);
    _mm512_store_si512(out + r * PANEL, halves(power[0], power[1]));
  }
};

// Asks for the sums that come next, which may lie in the third-level cache.
struct Fetching {
  const float* next;
  void two() {
    for (int i = 0; i < 4; i++) _mm_prefetch(reinterpret_cast<const char*>(next + 16 * i), _MM_HINT_T0);
    next += 64;
  }
  void rest() {}
};

// This thread's part of the vocabulary against all rows of a chunk: fills `states` [subs * 32][STATES] and, if that is
// wanted, sums [subs][D / 32][32][32] = u W.
template <bool CAPPED, bool SMOOTHED>
void pass(const Head& head, const Rows& rows, int64_t first, int64_t last, float* states, float* sums) {
  const int64_t D = head.D, steps = D / STEP;
  const int64_t most = std::max<int64_t>(1, BLOCK_BYTES / (4 * PANEL * D));
  Half* down = block_of.get(2 * most * PANEL * D);
  Half* up = down + most * PANEL * D;
  Half* powers = powers_of.get(most * SUB * PANEL);
  float* c = sums_of.get((most + 1) * SUB * PANEL);
  Leaving<CAPPED, SMOOTHED> leaving(head);
  for (int64_t r = 0; r < rows.subs * SUB; r++) {
    std::fill(states + r * STATES, states + (r + 1) * STATES, 0.0f);
    std::fill(states + r * STATES, states + r * STATES + LANES, -INFINITY);
  }
  if (sums && first == last) std::fill(sums, sums + rows.subs * SUB * D, 0.0f);
  for (int64_t block = first; block < last; block += most) {
    const int64_t panels = std::min(most, last - block), deep = panels * PANEL;
    const Half* from = head.weight + block * PANEL * head.stride;
    for (int64_t p = 0; p < panels; p++) pack(from, head.stride, true, D, p, down + p * PANEL * D);
    if (sums)
      for (int64_t d = 0; d < steps; d++) pack(from, head.stride, false, deep, d, up + d * deep * PANEL);
    for (int64_t s = 0; s < rows.subs; s++) {
      settled();
      for (int64_t k = 0; k < D; k += CHUNK) {
        const bool only = D <= CHUNK, ends = k + CHUNK >= D;
        for (int64_t p = 0; p < panels; p++) {
          float* place = c + (only ? p % 2 : p) * SUB * PANEL;
          Sums logits(place, k > 0);
          logits.multiply_passing(rows.left + (s * D + k) * SUB, down + (p * D + k) * PANEL, std::min(CHUNK, D - k),
                                  leaving);
          leaving.rest();
          logits.store();
          settled();
          if (ends)
            leaving.start(place, rows, s * SUB, (block + p) * PANEL, states + s * SUB * STATES,
                          powers + p * SUB * PANEL);
        }
      }
      leaving.rest();
      settled();
      if (!sums) continue;
      for (int64_t d = 0; d < steps; d++) {
        float* place = sums + (s * steps + d) * SUB * PANEL;
        Sums weighted(place, block > first);
        Fetching fetching{place + SUB * PANEL};
        weighted.multiply_passing(powers, up + d * deep * PANEL, deep, fetching);
        weighted.store();
      }
    }
  }
}

float inner(const Half* x, const Half* y, int64_t size) {
  __m512 sum = _mm512_setzero_ps();
  for (int64_t i = 0; i < size; i += 32)
    sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_loadu_si512(x + i), (__m512bh)_mm512_loadu_si512(y + i));
  return _mm512_reduce_add_ps(sum);
}

// 32 rows of hidden states as tiles want them, filled up with zeros, and their labels' own logits.
void lay_out(const Head& head, const Half* hidden, int64_t stride, const int64_t* targets, Rows& rows, int64_t s) {
  for (int64_t r = s * SUB; r < (s + 1) * SUB; r++) {
    const bool real = r < rows.count;
    const Half* from = hidden + r * stride;
    for (int64_t k = 0; k < head.D; k += STEP)
      _mm512_store_si512(rows.left + (s * head.D + k) * SUB + r % SUB * STEP,
                         real ? _mm512_loadu_si512(from + k) : _mm512_setzero_si512());
    rows.target[r] = real ? int32_t(targets[r]) : -1;
    rows.reference[r] = rows.shift[r] = 0.0f;
    rows.slope[r] = 1.0f;
    if (!real) continue;
    const float logit = head.scale * inner(from, head.weight + targets[r] * head.stride, head.D);
    rows.reference[r] = LOG2_E * logit;
    if (head.cap == 0) continue;
    const Capped found = capped(_mm512_set1_ps(logit / head.cap));
    rows.reference[r] = LOG2_E * head.cap * _mm512_cvtss_f32(found.value);
    rows.slope[r] = _mm512_cvtss_f32(found.slope);
  }
}

// Whether a row has a logit far above its label's; it is the reference then.
bool lift(Rows& rows, int64_t r, const float* states, int64_t step, int64_t threads) {
  __m512 top = _mm512_load_ps(states);
  for (int64_t t = 1; t < threads; t++) top = _mm512_max_ps(top, _mm512_load_ps(states + t * step));
  const float most = _mm512_reduce_max_ps(top);
  if (!(most > FAR)) return false;
  rows.reference[r] += most;
  rows.shift[r] = most;
  return true;
}

// A row's loss and, if that is wanted, its gradient, from all threads' parts. Returns the loss with smoothing.
float finish(const Head& head, const Rows& rows, int64_t r, const float* states, int64_t states_step, const float* sums,
             int64_t sums_step, int64_t threads, const float* columns, float* each, Half* out) {
  __m512 powers = _mm512_setzero_ps(), apart = _mm512_setzero_ps();
  for (int64_t t = 0; t < threads; t++) {
    powers = _mm512_add_ps(powers, _mm512_load_ps(states + t * states_step + LANES));
    apart = _mm512_add_ps(apart, _mm512_load_ps(states + t * states_step + 2 * LANES));
  }
  // Beside an infinite logit of the label all others are nothing, and what is left would look like a sure model.
  const float others =
      std::isfinite(rows.reference[r]) ? _mm512_reduce_add_ps(powers) : std::numeric_limits<float>::quiet_NaN();
  const float shift = rows.shift[r], e = head.smoothing;
  const float all = others + std::exp2(-shift);
  *each = shift == 0 ? std::log1p(others) : std::log(all) + LN_2 * shift;
  if (out) {
    const __m512 by = _mm512_set1_ps(head.scale / all);
    const __m512 own = _mm512_set1_ps(head.scale * rows.slope[r] * (e - others / all));
    const __m512 even = _mm512_set1_ps(-head.scale * e / float(head.V));
    const Half* label = head.weight + rows.target[r] * head.stride;
    sums += r / SUB * SUB * head.D + r % SUB * PANEL;
    for (int64_t k = 0; k < head.D; k += PANEL) {
      __m512 found[2];
      for (int64_t i = 0; i < 2; i++) {
        __m512 sum = _mm512_load_ps(sums + k * SUB + 16 * i);
        for (int64_t t = 1; t < threads; t++)
          sum = _mm512_add_ps(sum, _mm512_load_ps(sums + t * sums_step + k * SUB + 16 * i));
        found[i] = _mm512_fmadd_ps(own, widened(label + k + 16 * i), _mm512_mul_ps(sum, by));
        if (e != 0) found[i] = _mm512_fmadd_ps(even, _mm512_loadu_ps(columns + k + 16 * i), found[i]);
      }
      _mm512_storeu_si512(out + k, halves(found[0], found[1]));
    }
  }
  if (e == 0) return *each;
  return *each - e * LN_2 * (_mm512_reduce_add_ps(apart) / float(head.V) + shift);
}

// sum_j W_j over this thread's part.
void add_up(const Head& head, int64_t first, int64_t last, float* sums) {
  std::fill(sums, sums + head.D, 0.0f);
  for (int64_t v = first * PANEL; v < last * PANEL; v++)
    for (int64_t k = 0; k < head.D; k += 16)
      _mm512_storeu_ps(sums + k, _mm512_add_ps(_mm512_loadu_ps(sums + k), widened(head.weight + v * head.stride + k)));
}

}  // namespace

extern "C" {

// hidden [N, D], weight [V, D], targets [N] -> total, each [N], dhidden [N, D] (null: not wanted). cap 0: none;
// smoothing only without a cap. The weight is read once for `rows` rows, of which all threads keep sums. Returns 0 for
// a target that isn't in the vocabulary.
int head_loss(const Half* hidden, const Half* weight, const int64_t* targets, int64_t hidden_stride,
              int64_t weight_stride, int64_t N, int64_t D, int64_t V, float scale, float cap, float smoothing,
              int64_t rows, int64_t threads, float* total, float* each, Half* dhidden) {
  for (int64_t i = 0; i < N; i++)
    if (targets[i] < 0 || targets[i] >= V) return 0;
  const Head head{weight, weight_stride, V, D, scale, cap, smoothing};
  const int64_t most = up(std::min(rows, N), SUB), states_step = most * STATES, sums_step = most * D;
  float* known = rows_of.get(4 * most);
  Rows chunk{0, 0, left_of.get(most * D), known, known + most, known + 2 * most, targets_of.get(most)};
  float* smoothed = known + 3 * most;
  float* states = states_of.get(threads * states_step);
  float* parts = dhidden ? parts_of.get(threads * sums_step) : nullptr;
  float* columns = smoothing == 0 ? nullptr : columns_of.get(threads * D);
  std::atomic<int64_t> raised{-1};
  double sum = 0;
#pragma omp parallel num_threads(threads)
  {
    Tiles tiles;
    const int64_t me = omp_get_thread_num(), count = omp_get_num_threads();
    const int64_t first = V / PANEL * me / count, last = V / PANEL * (me + 1) / count;
    float* own_states = states + me * states_step;
    float* own_sums = parts ? parts + me * sums_step : nullptr;
    if (columns) add_up(head, first, last, columns + me * D);
#pragma omp barrier
#pragma omp single
    for (int64_t t = 1; columns && t < count; t++)
      for (int64_t k = 0; k < D; k++) columns[k] += columns[t * D + k];
    for (int64_t start = 0; start < N; start += most) {
#pragma omp single
      {
        chunk.count = std::min(most, N - start);
        chunk.subs = up(chunk.count, SUB) / SUB;
      }
#pragma omp for schedule(static)
      for (int64_t s = 0; s < chunk.subs; s++)
        lay_out(head, hidden + start * hidden_stride, hidden_stride, targets + start, chunk, s);
      for (bool again = true, once = false; again; once = true) {
        if (cap != 0)
          pass<true, false>(head, chunk, first, last, own_states, own_sums);
        else if (smoothing != 0)
          pass<false, true>(head, chunk, first, last, own_states, own_sums);
        else
          pass<false, false>(head, chunk, first, last, own_states, own_sums);
#pragma omp barrier
        if (once) break;
#pragma omp for schedule(static)
        for (int64_t r = 0; r < chunk.count; r++)
          if (lift(chunk, r, states + r * STATES, states_step, count)) raised = start;
        again = raised == start;
      }
#pragma omp for schedule(static)
      for (int64_t r = 0; r < chunk.count; r++)
        smoothed[r] = finish(head, chunk, r, states + r * STATES, states_step, parts, sums_step, count, columns,
                             each + start + r, dhidden ? dhidden + (start + r) * D : nullptr);
#pragma omp single
      for (int64_t r = 0; r < chunk.count; r++) sum += smoothed[r];
    }
  }
  *total = float(sum);
  return 1;
}
}
