// Householder on vectors: the pinned formula of lipdeploy/householder.h step by step, the same rounding at each.
#pragma once

#include "../dispatch.h"
#include "numbers.h"

namespace lipdeploy::LIPDEPLOY_ISA {

template <class Element>
struct Reflections {
  using N = Numbers<Element>;
  using Bits = typename N::Bits;
  using Work = typename N::Work;
  using B = typename N::B;
  using W = typename N::W;
  static constexpr int L = N::L;
  static constexpr bool kMayStream = sizeof(B) >= 16;

  const HouseholderCall<Element>& call;

  static LIPDEPLOY_INLINE void reflect(W& a, W& b, W s, W c) {
    const W beyond = a * s - b * c;
    const W m = beyond <= 0 ? W{} : beyond;  // a NaN stays
    const W twice = m + m;
    a = a - s * twice;
    b = b + c * twice;
  }

  // One angle for all, or one for each.
  struct Same {
    W sine, cosine;
    LIPDEPLOY_INLINE W s(int64_t) const { return sine; }
    LIPDEPLOY_INLINE W c(int64_t) const { return cosine; }
  };
  struct Each {
    const Work *sine, *cosine;
    LIPDEPLOY_INLINE W s(int64_t i) const { return load<W>(sine + i); }
    LIPDEPLOY_INLINE W c(int64_t i) const { return load<W>(cosine + i); }
  };
  static LIPDEPLOY_INLINE Same from(const Same& angles, int64_t, int64_t, Work*) { return angles; }
  // The last few, where a whole vector would read beyond the end.
  static LIPDEPLOY_INLINE Each from(const Each& angles, int64_t first, int64_t count, Work* room) {
    __builtin_memcpy(room, angles.sine + first, count * sizeof(Work));
    __builtin_memcpy(room + L, angles.cosine + first, count * sizeof(Work));
    return {room, room + L};
  }

  // ---- a and b in rows of their own

  template <bool Stream, class Angles>
  static LIPDEPLOY_INLINE void row_vector(const Angles& angles, const Bits* x, Bits* y, int64_t i, int64_t gap) {
    W a = N::widen(load<B>(x + i)), b = N::widen(load<B>(x + gap + i));
    reflect(a, b, angles.s(i), angles.c(i));
    store<Stream>(y + i, N::narrow(a));
    store<Stream>(y + gap + i, N::narrow(b));
  }

  template <class Angles>
  __attribute__((noinline)) void rows(const Angles& angles, const Bits* x, Bits* y, int64_t count) const {
    const int64_t gap = call.shape.gap();
    int64_t i = 0;
    if (kMayStream && call.stream && aligned_for<B>(y) && gap % L == 0) {
      for (; i + L <= count; i += L) row_vector<kMayStream>(angles, x, y, i, gap);
    } else {
      for (; i + L <= count; i += L) row_vector<false>(angles, x, y, i, gap);
    }
    if (i == count) return;
    if (count >= L) return row_vector<false>(angles, x, y, count - L, gap);
    Bits few[2 * L] = {};
    Work room[2 * L] = {};
    __builtin_memcpy(few, x, count * sizeof(Bits));
    __builtin_memcpy(few + L, x + gap, count * sizeof(Bits));
    row_vector<false>(from(angles, 0, count, room), few, few, 0, L);
    __builtin_memcpy(y, few, count * sizeof(Bits));
    __builtin_memcpy(y + gap, few + L, count * sizeof(Bits));
  }

  // ---- a and b in turns

  template <bool Stream>
  static LIPDEPLOY_INLINE void neighbour_vectors(const Each& angles, const Bits* x, Bits* y, int64_t i) {
    using S = Shuffle<W, L>;
    const W first = N::widen(load<B>(x + 2 * i)), second = N::widen(load<B>(x + 2 * i + L));
    W a = S::even(first, second, typename S::All()), b = S::odd(first, second, typename S::All());
    reflect(a, b, angles.s(i), angles.c(i));
    store<Stream>(y + 2 * i, N::narrow(S::zip(a, b, typename S::All())));
    store<Stream>(y + 2 * i + L, N::narrow(S::zip_upper(a, b, typename S::All())));
  }

  __attribute__((noinline)) void neighbours(const Each& angles, const Bits* x, Bits* y, int64_t count) const {
    int64_t i = 0;
    if (kMayStream && call.stream && aligned_for<B>(y)) {
      for (; i + L <= count; i += L) neighbour_vectors<kMayStream>(angles, x, y, i);
    } else {
      for (; i + L <= count; i += L) neighbour_vectors<false>(angles, x, y, i);
    }
    if (i == count) return;
    if (count >= L) return neighbour_vectors<false>(angles, x, y, count - L);
    Bits few[2 * L] = {};
    Work room[2 * L] = {};
    __builtin_memcpy(few, x, 2 * count * sizeof(Bits));
    neighbour_vectors<false>(from(angles, 0, count, room), few, few, 0);
    __builtin_memcpy(y, few, 2 * count * sizeof(Bits));
  }

  LIPDEPLOY_INLINE void scattered(int64_t begin, int64_t end) const {
    const HouseholderShape& shape = call.shape;
    for (int64_t q = begin; q < end; ++q) {
      const int64_t first = shape.first(q), second = first + shape.gap(), pair = shape.pair(q);
      Bits a = call.x[first], b = call.x[second];
      lipdeploy::reflect<Element>(a, b, call.sines[pair], call.cosines[pair]);
      call.y[first] = a;
      call.y[second] = b;
    }
  }

  LIPDEPLOY_INLINE void pairs(int64_t begin, int64_t end) const {
    if (call.pairs == Pairs::kScattered) return scattered(begin, end);
    const HouseholderShape& shape = call.shape;
    const int64_t stretch = call.pairs == Pairs::kRows ? shape.inner : call.period;
    for (int64_t q = begin; q < end;) {
      const int64_t at = q % stretch, here = stretch - at, count = here < end - q ? here : end - q;
      const int64_t first = call.pairs == Pairs::kNeighbours ? 2 * q : shape.first(q);
      const Bits* x = call.x + first;
      Bits* y = call.y + first;
      if (call.pairs == Pairs::kRows) {
        const int64_t pair = shape.pair(q);
        rows(Same{W{} + call.sine[pair], W{} + call.cosine[pair]}, x, y, count);
      } else if (call.pairs == Pairs::kSamples) {
        rows(Each{call.sine + at, call.cosine + at}, x, y, count);
      } else {
        neighbours(Each{call.sine + at, call.cosine + at}, x, y, count);
      }
      q += count;
    }
  }
};

template <class Element>
void reflect_pairs(const HouseholderCall<Element>& call, int64_t begin, int64_t end) {
  Reflections<Element>{call}.pairs(begin, end);
  if (call.stream) finish_streaming();
}

}  // namespace lipdeploy::LIPDEPLOY_ISA
