// Vectors as GCC and Clang offer them on every machine. Included once for each instruction set, inside a namespace of
// its own, so that no function compiled for one set can be linked into another: all is inlined or named apart.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "lipdeploy/element.h"

#if !defined(LIPDEPLOY_ISA) || !defined(LIPDEPLOY_VECTOR_BYTES)
#error "define LIPDEPLOY_ISA (a namespace) and LIPDEPLOY_VECTOR_BYTES first"
#endif

namespace lipdeploy::LIPDEPLOY_ISA {

template <class Number, int Lanes>
struct VectorOf {
  typedef Number type __attribute__((vector_size(Lanes * sizeof(Number))));
};
template <class Number, int Lanes>
using Vector = typename VectorOf<Number, Lanes>::type;

// Transposing 32 rows of 16-bit numbers would need more registers than there are: those stay at 32 bytes.
template <class Bits>
constexpr int kLanes = (sizeof(Bits) == 2 && LIPDEPLOY_VECTOR_BYTES > 32 ? 32 : LIPDEPLOY_VECTOR_BYTES) / sizeof(Bits);

template <class V, class Number>
LIPDEPLOY_INLINE V load(const Number* from) {
  V v;
  __builtin_memcpy(&v, from, sizeof(V));
  return v;
}

// Past the caches, where the output is too large to be read from there. The address must be a multiple of the vector.
template <class V, class Number>
LIPDEPLOY_INLINE void store_around_cache(Number* to, V v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(V) == 64) return _mm512_stream_si512(reinterpret_cast<__m512i*>(to), (__m512i)v);
#endif
#if defined(__AVX__)
  if constexpr (sizeof(V) == 32) return _mm256_stream_si256(reinterpret_cast<__m256i*>(to), (__m256i)v);
#endif
#if defined(__x86_64__)
  if constexpr (sizeof(V) == 16) return _mm_stream_si128(reinterpret_cast<__m128i*>(to), (__m128i)v);
#endif
  __builtin_memcpy(to, &v, sizeof(V));
}

template <bool Stream, class V, class Number>
LIPDEPLOY_INLINE void store(Number* to, V v) {
  if constexpr (Stream) {
    store_around_cache(to, v);
  } else {
    __builtin_memcpy(to, &v, sizeof(V));
  }
}

// Stores around the cache are weakly ordered: other threads may read only after this.
LIPDEPLOY_INLINE void finish_streaming() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

template <class V>
LIPDEPLOY_INLINE bool aligned_for(const void* address) {
  return reinterpret_cast<uintptr_t>(address) % sizeof(V) == 0;
}

template <class V>
LIPDEPLOY_INLINE V smaller_of(V a, V b) {
  return a < b ? a : b;
}
template <class V>
LIPDEPLOY_INLINE V larger_of(V a, V b) {
  return a < b ? b : a;
}

// Shuffles of two vectors a, b seen as one row of 2·Lanes numbers.
template <class V, int Lanes>
struct Shuffle {
  template <size_t... I>
  static LIPDEPLOY_INLINE V even(V a, V b, std::index_sequence<I...>) {
    return __builtin_shufflevector(a, b, static_cast<int>(2 * I)...);
  }
  template <size_t... I>
  static LIPDEPLOY_INLINE V odd(V a, V b, std::index_sequence<I...>) {
    return __builtin_shufflevector(a, b, static_cast<int>(2 * I + 1)...);
  }
  template <size_t... I>
  static LIPDEPLOY_INLINE V zip(V a, V b, std::index_sequence<I...>) {
    return __builtin_shufflevector(a, b, static_cast<int>(I / 2 + (I % 2) * Lanes)...);
  }
  template <size_t... I>
  static LIPDEPLOY_INLINE V zip_upper(V a, V b, std::index_sequence<I...>) {
    return __builtin_shufflevector(a, b, static_cast<int>(Lanes / 2 + I / 2 + (I % 2) * Lanes)...);
  }
  template <size_t... I>
  static LIPDEPLOY_INLINE V swap(V a, std::index_sequence<I...>) {
    return __builtin_shufflevector(a, a, static_cast<int>(I ^ 1)...);
  }
  template <size_t... I>
  static LIPDEPLOY_INLINE V alternate(V a, V b, std::index_sequence<I...>) {
    return __builtin_shufflevector(a, b, static_cast<int>(I + (I % 2) * Lanes)...);
  }
  using All = std::make_index_sequence<static_cast<size_t>(Lanes)>;
};

// One step of a transposition: `Rows` vectors seen as one long row are dealt out, even numbers first, odd ones second.
// Repeated log2(n) times it moves the lowest log2(n) bits of every position to the top: a row-major matrix with n
// columns becomes its transpose. `gather_step` is the inverse.
template <class V, int Lanes, int Rows>
LIPDEPLOY_INLINE void deal_step(V* rows) {
  using S = Shuffle<V, Lanes>;
  V dealt[Rows];
#pragma GCC unroll 32
  for (int i = 0; i < Rows / 2; ++i) {
    dealt[i] = S::even(rows[2 * i], rows[2 * i + 1], typename S::All());
    dealt[i + Rows / 2] = S::odd(rows[2 * i], rows[2 * i + 1], typename S::All());
  }
#pragma GCC unroll 32
  for (int i = 0; i < Rows; ++i) rows[i] = dealt[i];
}

template <class V, int Lanes, int Rows>
LIPDEPLOY_INLINE void gather_step(V* rows) {
  using S = Shuffle<V, Lanes>;
  V gathered[Rows];
#pragma GCC unroll 32
  for (int i = 0; i < Rows / 2; ++i) {
    gathered[2 * i] = S::zip(rows[i], rows[i + Rows / 2], typename S::All());
    gathered[2 * i + 1] = S::zip_upper(rows[i], rows[i + Rows / 2], typename S::All());
  }
#pragma GCC unroll 32
  for (int i = 0; i < Rows; ++i) rows[i] = gathered[i];
}

// Any number of rows, one output vector after the other: where its numbers lie in row Source, choose them.
// Output Rank of `Lanes` groups of `Rows`: number w comes from position w·Rows + Rank of the long row.
template <class V, int Lanes, int Rows>
struct Transposition {
  template <int Rank, int Source, size_t... I>
  static LIPDEPLOY_INLINE V take_rank(V so_far, V row, std::index_sequence<I...>) {
    return __builtin_shufflevector(so_far, row, pick(static_cast<int>(I), static_cast<int>(I) * Rows + Rank, Source)...);
  }
  // The inverse: number i of row Row comes from place (Row·Lanes + i) / Rows of rank (Row·Lanes + i) % Rows.
  template <int Row, int Rank, size_t... I>
  static LIPDEPLOY_INLINE V take_row(V so_far, V rank, std::index_sequence<I...>) {
    return __builtin_shufflevector(so_far, rank, from_rank(static_cast<int>(I), Row * Lanes + static_cast<int>(I), Rank)...);
  }
  static constexpr int pick(int i, int position, int source) {
    return position / Lanes == source ? Lanes + position % Lanes : i;
  }
  static constexpr int from_rank(int i, int position, int rank) {
    return position % Rows == rank ? Lanes + position / Rows : i;
  }
  using All = std::make_index_sequence<static_cast<size_t>(Lanes)>;

  template <int Rank, size_t... Source>
  static LIPDEPLOY_INLINE V rank(const V* rows, std::index_sequence<Source...>) {
    V v{};
    ((v = take_rank<Rank, static_cast<int>(Source)>(v, rows[Source], All())), ...);
    return v;
  }
  template <int Row, size_t... Rank>
  static LIPDEPLOY_INLINE V row(const V* ranks, std::index_sequence<Rank...>) {
    V v{};
    ((v = take_row<Row, static_cast<int>(Rank)>(v, ranks[Rank], All())), ...);
    return v;
  }
  template <size_t... Rank>
  static LIPDEPLOY_INLINE void to_ranks(V* rows, std::index_sequence<Rank...> all) {
    const V ranks[] = {rank<static_cast<int>(Rank)>(rows, all)...};
    ((rows[Rank] = ranks[Rank]), ...);
  }
  template <size_t... Row>
  static LIPDEPLOY_INLINE void to_rows(V* ranks, std::index_sequence<Row...> all) {
    const V rows[] = {row<static_cast<int>(Row)>(ranks, all)...};
    ((ranks[Row] = rows[Row]), ...);
  }
};

#if defined(__AVX512F__)
// Exchanges the odd pieces of `a`, of so many bytes, with the even pieces of `b`: its own inverse, one instruction each.
template <int Bytes, class V>
LIPDEPLOY_INLINE void exchange_pieces(V& a, V& b) {
  const __m512 from_a = (__m512)a, from_b = (__m512)b;
  if constexpr (Bytes == 4) {
    a = (V)_mm512_mask_moveldup_ps(from_a, 0xaaaa, from_b);
    b = (V)_mm512_mask_movehdup_ps(from_b, 0x5555, from_a);
  } else if constexpr (Bytes == 8) {
    a = (V)_mm512_unpacklo_pd((__m512d)from_a, (__m512d)from_b);
    b = (V)_mm512_unpackhi_pd((__m512d)from_a, (__m512d)from_b);
  } else if constexpr (Bytes == 16) {
    a = (V)_mm512_mask_shuffle_f32x4(from_a, 0xf0f0, from_b, from_b, 0x80);
    b = (V)_mm512_mask_shuffle_f32x4(from_b, 0x0f0f, from_a, from_a, 0x31);
  } else {
    a = (V)_mm512_shuffle_f32x4(from_a, from_b, 0x44);
    b = (V)_mm512_shuffle_f32x4(from_a, from_b, 0xee);
  }
}

// Bit n of a number's place within its vector changes places with bit n of the number of its row: numbers that lay one
// after the other, a power of two of them, come to lie one below the other. Which lane a group gets does not matter, as
// the same steps bring it back.
template <class V, int Lanes, int Rows, int Step = 1>
LIPDEPLOY_INLINE void exchange_rows(V* rows) {
  if constexpr (Step < Rows) {
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i)
      if ((i & Step) == 0) exchange_pieces<Step * 64 / Lanes>(rows[i], rows[i + Step]);
    exchange_rows<V, Lanes, Rows, 2 * Step>(rows);
  }
}
#endif

// From `Lanes` groups of `Rows` numbers each, one after the other, to one vector for each rank, and back.
template <class V, int Lanes, int Rows>
LIPDEPLOY_INLINE void groups_to_ranks(V* rows) {
  if constexpr ((Rows & (Rows - 1)) != 0) {
    Transposition<V, Lanes, Rows>::to_ranks(rows, std::make_index_sequence<static_cast<size_t>(Rows)>());
#if defined(__AVX512F__)
  } else if constexpr (sizeof(V) == 64 && Rows <= Lanes) {
    exchange_rows<V, Lanes, Rows>(rows);
#endif
  } else {
#pragma GCC unroll 8
    for (int n = 1; n < Rows; n *= 2) deal_step<V, Lanes, Rows>(rows);
  }
}

template <class V, int Lanes, int Rows>
LIPDEPLOY_INLINE void ranks_to_groups(V* rows) {
  if constexpr ((Rows & (Rows - 1)) != 0) {
    Transposition<V, Lanes, Rows>::to_rows(rows, std::make_index_sequence<static_cast<size_t>(Rows)>());
#if defined(__AVX512F__)
  } else if constexpr (sizeof(V) == 64 && Rows <= Lanes) {
    exchange_rows<V, Lanes, Rows>(rows);
#endif
  } else {
#pragma GCC unroll 8
    for (int n = 1; n < Rows; n *= 2) gather_step<V, Lanes, Rows>(rows);
  }
}

}  // namespace lipdeploy::LIPDEPLOY_ISA
