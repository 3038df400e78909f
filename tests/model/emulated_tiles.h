// The tiles of AMX as plain memory, so that code for them runs, slowly, on a processor that has none. For tests:
//
//   -D__AMX_BF16__ -include emulated_tiles.h

#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace emulated {

struct Tile {
  alignas(64) uint8_t row[16][64];
};
inline thread_local Tile tiles[8];
inline thread_local uint8_t config[64];  // palette 0 until there is one: what reads or writes tiles before that ends

inline Tile& tile(int t) {
  if (config[0] != 1 || config[16 + 2 * t] != 64 || config[48 + t] != 16) __builtin_trap();
  return tiles[t];
}

inline void zero(int t) { std::memset(&tile(t), 0, sizeof(Tile)); }
inline void load(int t, const void* from, int64_t stride) {
  for (int i = 0; i < 16; i++) std::memcpy(tile(t).row[i], static_cast<const uint8_t*>(from) + i * stride, 64);
}
inline void store(int t, void* to, int64_t stride) {
  for (int i = 0; i < 16; i++) std::memcpy(static_cast<uint8_t*>(to) + i * stride, tile(t).row[i], 64);
}
inline void product(int to, int left, int right) {
  for (int i = 0; i < 16; i++) {
    __m512 sum = _mm512_load_ps(tile(to).row[i]);
    for (int k = 0; k < 16; k++) {
      int32_t pair;
      std::memcpy(&pair, tile(left).row[i] + 4 * k, 4);
      const auto b = (__m512bh)_mm512_load_si512(tile(right).row[k]);
      sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(pair), b);
    }
    _mm512_store_ps(tile(to).row[i], sum);
  }
}

}  // namespace emulated

#undef _tile_zero
#undef _tile_loadd
#undef _tile_stream_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_zero(t) emulated::zero(t)
#define _tile_loadd(t, from, stride) emulated::load(t, from, stride)
#define _tile_stream_loadd(t, from, stride) emulated::load(t, from, stride)
#define _tile_stored(t, to, stride) emulated::store(t, to, stride)
#define _tile_dpbf16ps(to, left, right) emulated::product(to, left, right)
#define _tile_loadconfig(from) std::memcpy(emulated::config, from, 64)
#define _tile_storeconfig(to) std::memcpy(to, emulated::config, 64)
#define _tile_release() std::memset(emulated::config, 0, 64)
