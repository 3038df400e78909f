// New tokens on the CPU in bf16, through a whole model of the llama kind: the next one of every row, or the tokens of
// prompts (model/decode_native.py builds and calls it). A row here is one token: the tokens of a prompt are rows, each of
// which sees one more than the one before.
//
// Numbers lie feature by feature: x [features][M], M rows of the batch filled up to a multiple of 16, so that norms,
// rotary positions and activations work on vectors of rows. A product is W x with the weights as they are in the
// model, [outputs][inputs], on the left, read once and never packed; x on the right is packed in pairs: element
// (k, m) stands at [k / 2][m][k % 2].
//
// All threads go through all layers together and wait for each other where one needs what all have computed. What is
// cheap (norms, packing, LoRA's small inner product) each thread computes for itself rather than wait.
//
// The cache of a layer is [kv heads][tokens][size], values packed in pairs of tokens: [kv heads][tokens / 2][size][2].
// A row reads its spans of tokens in it: beginnings that it shares with other rows, then its own. A span begins at a
// multiple of 32, and what fills its last 32 is finite.

#include <ATen/cpu/vec/vec.h>
#include <c10/util/BFloat16.h>
#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "products_cpu.h"

// As in decode_native.py, field by field.
struct Linear {
  const Half *weight, *bias, *a, *b;  // bias, a [rank][inputs] and b [outputs][rank]: null where there is none
  int64_t outputs, inputs, rank;
  float scale;
};
struct Layer {
  const float *norm, *post_norm, *q_norm, *k_norm;  // the last two: null where there is none
  Linear q, k, v, o, gate, up, down;
  Half *keys, *values;
  int64_t rotary, window;  // whether positions are rotated; tokens seen at most, 0: all
};
struct Model {
  const Half* embedding;
  const float *norm, *cosine, *sine;  // cosine and sine [positions][rotated / 2]
  const Layer* layers;
  Linear head;
  int64_t depth, hidden, inner, heads, kv_heads, size, rotated, store;  // store: tokens of the cache
  float eps, scale;
};
struct Rows {
  const int64_t *tokens, *positions, *slots;  // [count]; slots: where the cache takes the token
  const int64_t *offsets, *spans;             // spans offsets[r] to offsets[r + 1] of row r: begin, end
  const int64_t* wanted;                      // [outputs]: the rows whose scores are wanted
  const float* adapter;                       // [count]: 1 with the adapter, 0 without
  float* logits;                              // [outputs][vocabulary]
  int64_t count, outputs;
  int64_t together;  // whether rows see each other's new tokens
};

namespace {

using Vec = at::vec::Vectorized<float>;
constexpr float NONE = -std::numeric_limits<float>::infinity();

struct Work {  // a thread's own
  Buffer<uint32_t> pairs, low[2], queries;
  Buffer<Half> shares;
  Buffer<float> block, low_block, small, scores, sums;
};
thread_local Work work;

struct Shared {  // what threads hand to each other
  Buffer<float> x, qkv, last;
  Buffer<Half> attended;
  Buffer<uint32_t> inner;
};
Shared shared;

class Step {
 public:
  Step(const Model& model, const Rows& rows, int64_t thread, int64_t threads)
      : md(model), rw(rows), thread(thread), threads(threads),
        m((rows.count + LANES - 1) / LANES * LANES), w(work) {}

  void run() {
    const int64_t q_size = md.heads * md.size, kv_size = md.kv_heads * md.size;
    float* x = shared.x.get(0);
    float *q = shared.qkv.get(0), *k = q + q_size * m, *v = k + kv_size * m;
    embed(x);
    wait();
    for (int64_t i = 0; i < md.depth; i++) {
      const Layer& l = md.layers[i];
      const uint32_t* in = normed(x, l.norm);
      project(l.q, in, q, false);
      project(l.k, in, k, false);
      project(l.v, in, v, false);
      wait();
      remember(l, k, v);
      if (rw.together) wait();
      attend(l, q);
      wait();
      project(l.o, taken(), x, true);
      wait();
      feed(l, normed(x, l.post_norm));
      wait();
      project(l.down, shared.inner.get(0), x, true);
      wait();
    }
    if (rw.outputs == 0) return;
    x = last(x);
    wait();
    head(normed(x, md.norm));
  }

 private:
  const Model& md;
  const Rows& rw;
  const int64_t thread, threads;
  int64_t m;
  Work& w;

  static void wait() {
#pragma omp barrier
  }

  // This thread's share of `count` outputs, in blocks: use(first, how many).
  template <class F>
  void blocks(int64_t count, F&& use) const {
    const int64_t all = (count + BLOCK - 1) / BLOCK, end = std::min(all * (thread + 1) / threads * BLOCK, count);
    for (int64_t n = all * thread / threads * BLOCK; n < end; n += BLOCK) use(n, std::min(BLOCK, count - n));
  }

  void embed(float* x) const {
    blocks(md.hidden, [&](int64_t first, int64_t count) {
      for (int64_t d = first; d < first + count; d++)
        for (int64_t r = 0; r < m; r++)
          x[d * m + r] = r < rw.count ? float(md.embedding[rw.tokens[r] * md.hidden + d]) : 0.0f;
    });
  }

  // The columns whose scores are wanted, which are all that is left from here on.
  float* last(const float* x) {
    const int64_t wide = (rw.outputs + LANES - 1) / LANES * LANES;
    float* out = shared.last.get(0);
    blocks(md.hidden, [&](int64_t first, int64_t count) {
      for (int64_t d = first; d < first + count; d++)
        for (int64_t r = 0; r < wide; r++) out[d * wide + r] = r < rw.outputs ? x[d * m + rw.wanted[r]] : 0.0f;
    });
    m = wide;
    return out;
  }

  uint32_t* pairs() { return w.pairs.get(std::max(md.hidden, md.heads * md.size) / 2 * m); }

  const uint32_t* normed(const float* x, const float* weight) {
    float* factor = w.small.get(m);
    std::fill(factor, factor + m, 0.0f);
    for (int64_t d = 0; d < md.hidden; d++)
      for (int64_t r = 0; r < m; r++) factor[r] += x[d * m + r] * x[d * m + r];
    for (int64_t r = 0; r < m; r++) factor[r] = 1.0f / std::sqrt(factor[r] / float(md.hidden) + md.eps);
    uint32_t* out = pairs();
    for (int64_t d = 0; d < md.hidden; d += 2)
      for (int64_t r = 0; r < m; r++)
        out[d / 2 * m + r] =
            pair(x[d * m + r] * factor[r] * weight[d], x[(d + 1) * m + r] * factor[r] * weight[d + 1]);
    return out;
  }

  // What attention left, [row][heads * size], as a right side.
  const uint32_t* taken() {
    const int64_t width = md.heads * md.size / 2;
    uint32_t* out = pairs();
    at::vec::transpose_mxn<float>(reinterpret_cast<const float*>(shared.attended.get(0)), width,
                                  reinterpret_cast<float*>(out), m, int(m), int(width));
    return out;
  }

  // LoRA's inner product, a x times its scale, for the rows with the adapter; null without an adapter.
  const uint32_t* low(const Linear& l, const uint32_t* in, int slot = 0) {
    if (l.rank == 0) return nullptr;
    float* c = w.low_block.get(l.rank * m);
    for (int64_t n = 0; n < l.rank; n += BLOCK)
      product(l.a + n * l.inputs, l.inputs, l.inputs, BLOCK, in, m, c + n * m, false);
    uint32_t* out = w.low[slot].get(l.rank / 2 * m);
    for (int64_t k = 0; k < l.rank; k += 2)
      for (int64_t r = 0; r < m; r++) {
        const float factor = r < rw.count ? rw.adapter[r] * l.scale : 0.0f;
        out[k / 2 * m + r] = pair(c[k * m + r] * factor, c[(k + 1) * m + r] * factor);
      }
    return out;
  }

  // Outputs first to first + count of a linear layer: c [count][m].
  void outputs(const Linear& l, const uint32_t* in, const uint32_t* low, int64_t first, int64_t count,
               float* c) const {
    product(l.weight + first * l.inputs, l.inputs, l.inputs, count, in, m, c, false);
    if (low != nullptr) product(l.b + first * l.rank, l.rank, l.rank, count, low, m, c, true);
    if (l.bias != nullptr)
      for (int64_t n = 0; n < count; n++)
        for (int64_t r = 0; r < m; r++) c[n * m + r] += float(l.bias[first + n]);
  }

  // This thread's outputs of a linear layer into out [outputs][m], or added to what is there.
  void project(const Linear& l, const uint32_t* in, float* out, bool add) {
    const uint32_t* inner = low(l, in);
    float* c = w.block.get(2 * BLOCK * m);
    blocks(l.outputs, [&](int64_t first, int64_t count) {
      float* to = out + first * m;
      outputs(l, in, inner, first, count, add ? c : to);
      if (add)
        for (int64_t i = 0; i < count * m; i++) to[i] += c[i];
    });
  }

  // silu(gate x) * up x, packed for the product that follows.
  void feed(const Layer& l, const uint32_t* in) {
    const uint32_t *gate_low = low(l.gate, in, 0), *up_low = low(l.up, in, 1);
    float *gate = w.block.get(2 * BLOCK * m), *up = gate + BLOCK * m;
    uint32_t* out = shared.inner.get(0);
    blocks(md.inner, [&](int64_t first, int64_t count) {
      outputs(l.gate, in, gate_low, first, count, gate);
      outputs(l.up, in, up_low, first, count, up);
      for (int64_t i = 0; i < count * m; i += LANES) {
        const Vec x = Vec::loadu(gate + i);
        (x / (Vec(1.0f) + x.neg().exp_u20()) * Vec::loadu(up + i)).store(gate + i);
      }
      for (int64_t n = 0; n < count; n += 2)
        for (int64_t r = 0; r < m; r++)
          out[(first + n) / 2 * m + r] = pair(gate[n * m + r], gate[(n + 1) * m + r]);
    });
  }

  void head(const uint32_t* in) {
    float *c = w.block.get(2 * BLOCK * m), *turned = c + BLOCK * m;
    const int64_t words = md.head.outputs;
    blocks(words, [&](int64_t first, int64_t) {
      first = std::min(first, words - BLOCK);  // a last block that isn't full begins earlier
      outputs(md.head, in, nullptr, first, BLOCK, c);
      at::vec::transpose_mxn<float>(c, m, turned, BLOCK, int(BLOCK), int(m));
      for (int64_t r = 0; r < rw.outputs; r++)
        std::memcpy(rw.logits + r * words + first, turned + r * BLOCK, BLOCK * sizeof(float));
    });
  }

  // One head of one row out of [features][m], normed and rotated: out [size].
  void gather(const float* from, int64_t row, const float* norm, bool rotary, float* out) const {
    const int64_t size = md.size, half = md.rotated / 2;
    for (int64_t d = 0; d < size; d++) out[d] = from[d * m + row];
    if (norm != nullptr) {
      float total = 0.0f;
      for (int64_t d = 0; d < size; d++) total += out[d] * out[d];
      const float factor = 1.0f / std::sqrt(total / float(size) + md.eps);
      for (int64_t d = 0; d < size; d++) out[d] *= factor * norm[d];
    }
    if (!rotary) return;
    const float *cosine = md.cosine + rw.positions[row] * half, *sine = md.sine + rw.positions[row] * half;
    for (int64_t d = 0; d < half; d++) {
      const float a = out[d], b = out[d + half];
      out[d] = a * cosine[d] - b * sine[d];
      out[d + half] = b * cosine[d] + a * sine[d];
    }
  }

  // This thread's share of key heads and rows, the same wherever it is asked for: use(key head, row).
  template <class F>
  void items(F&& use) const {
    const int64_t all = md.kv_heads * rw.count;
    for (int64_t item = all * thread / threads; item < all * (thread + 1) / threads; item++)
      use(item / rw.count, item % rw.count);
  }

  // New keys and values into the cache.
  void remember(const Layer& l, const float* k, const float* v) {
    const int64_t size = md.size;
    float* one = w.small.get(std::max(m, size));
    items([&](int64_t kv, int64_t row) {
      const int64_t head = kv * md.store * size, slot = rw.slots[row];
      gather(k + kv * size * m, row, l.k_norm, l.rotary, one);
      write(one, size, 1.0f, l.keys + head + slot * size);
      gather(v + kv * size * m, row, nullptr, false, one);
      auto value = reinterpret_cast<uint16_t*>(l.values) + head + slot / 2 * 2 * size + slot % 2;
      for (int64_t d = 0; d < size; d++) value[2 * d] = uint16_t(rounded(one[d]) >> 16);
    });
  }

  void attend(const Layer& l, const float* q) {
    const int64_t size = md.size, group = md.heads / md.kv_heads;
    float* one = w.small.get(std::max(m, size));
    uint32_t* queries = w.queries.get(size / 2 * LANES);
    std::fill(queries, queries + size / 2 * LANES, 0);
    items([&](int64_t kv, int64_t row) {
      for (int64_t h = 0; h < group; h++) {
        gather(q + (kv * group + h) * size * m, row, l.q_norm, l.rotary, one);
        for (int64_t d = 0; d < size; d += 2) queries[d / 2 * LANES + h] = pair(one[d], one[d + 1]);
      }
      const int64_t head = kv * md.store * size;
      look(l.keys + head, l.values + head, l.window, row, queries,
           shared.attended.get(0) + (row * md.heads + kv * group) * size);
    });
  }

  // out [group][size] = softmax(scale queries keys) values over the row's spans, all heads of the group at once.
  void look(const Half* keys, const Half* values, int64_t window, int64_t row, const uint32_t* queries, Half* out) {
    const int64_t size = md.size, group = md.heads / md.kv_heads;
    int64_t length = 0, width = 0;
    spans(row, [&](int64_t, int64_t count) {
      length += count;
      width += (count + BLOCK - 1) / BLOCK * BLOCK;
    });
    int64_t hidden = window > 0 ? std::max<int64_t>(0, length - window) : 0, at = 0;
    float *scores = w.scores.get(LANES * (width + BLOCK)), *block = scores + LANES * width;
    spans(row, [&](int64_t begin, int64_t count) {
      for (int64_t t = 0; t < count; t += BLOCK, at += BLOCK) {
        fetch(values + (begin + t) * size, BLOCK * size);
        product(keys + (begin + t) * size, size, size, BLOCK, queries, LANES, block, false);
        at::vec::transpose_mxn<float>(block, LANES, scores + at, width, int(BLOCK), int(LANES));
        const int64_t seen = std::min(BLOCK, count - t), skipped = std::min(hidden, seen);
        hidden -= skipped;
        for (int64_t h = 0; h < group && (skipped > 0 || seen < BLOCK); h++) {
          std::fill(scores + h * width + at, scores + h * width + at + skipped, NONE);
          std::fill(scores + h * width + at + seen, scores + h * width + at + BLOCK, NONE);
        }
      }
    });
    // Rows beyond the group are left as they are: what comes of them is never read.
    auto p = w.shares.get(LANES * width);
    float* sums = w.sums.get(LANES * size);
    float total[LANES];
    for (int64_t h = 0; h < group; h++) total[h] = softmax(scores + h * width, width, p + h * width);
    at = 0;
    spans(row, [&](int64_t begin, int64_t count) {
      const int64_t padded = (count + BLOCK - 1) / BLOCK * BLOCK;
      product(p + at, width, padded, LANES, reinterpret_cast<const uint32_t*>(values + begin * size), size, sums,
              at > 0);
      at += padded;
    });
    for (int64_t h = 0; h < group; h++) write(sums + h * size, size, 1.0f / total[h], out + h * size);
  }

  // p = exp(scale (score - maximum)) of a head; returns the sum.
  float softmax(const float* s, int64_t width, Half* p) const {
    Vec most(NONE), sum(0.0f);
    for (int64_t t = 0; t < width; t += LANES) most = at::vec::maximum(most, Vec::loadu(s + t));
    const Vec top(_mm512_reduce_max_ps(most));
    alignas(64) float one[LANES];
    for (int64_t t = 0; t < width; t += LANES) {
      const Vec x = ((Vec::loadu(s + t) - top) * Vec(md.scale)).exp_u20();
      sum = sum + x;
      x.store(one);
      write(one, LANES, 1.0f, p + t);
    }
    return _mm512_reduce_add_ps(sum);
  }

  // The row's spans, each from a multiple of 32 on: use(begin in the cache, tokens).
  template <class F>
  void spans(int64_t row, F&& use) const {
    for (int64_t s = rw.offsets[row]; s < rw.offsets[row + 1]; s++)
      use(rw.spans[2 * s], rw.spans[2 * s + 1] - rw.spans[2 * s]);
  }
};

}  // namespace

extern "C" {

// Whether the system lets this process use what the processor has.
void decode_step(const Model* model, const Rows* rows, int64_t threads) {
  const int64_t m = (rows->count + LANES - 1) / LANES * LANES, width = model->heads * model->size;
  shared.x.get(model->hidden * m);
  shared.last.get(model->hidden * ((rows->outputs + LANES - 1) / LANES * LANES));
  shared.qkv.get((width + 2 * model->kv_heads * model->size) * m);
  shared.inner.get(model->inner / 2 * m);
  std::memset(static_cast<void*>(shared.attended.get(width * m)), 0, width * m * sizeof(Half));
#pragma omp parallel num_threads(threads)
  {
    Tiles tiles;
    Step(*model, *rows, omp_get_thread_num(), omp_get_num_threads()).run();
  }
}
}
