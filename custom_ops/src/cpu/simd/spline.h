// LinearSpline on many elements: vectors in stages (spline_vector.h), and where their coefficients come from.
#pragma once

#include "../dispatch.h"
#include "spline_vector.h"

namespace lipdeploy::LIPDEPLOY_ISA {

// Tables of up to this many vectors are looked up by permuting registers.
#if defined(__GNUC__) && !defined(__clang__) && LIPDEPLOY_VECTOR_BYTES > 16
template <class Work>
constexpr int kMostTableVectors = LIPDEPLOY_VECTOR_BYTES == 64 ? 4 : sizeof(Work) == 4 ? 2 : 0;
#else
template <class Work>
constexpr int kMostTableVectors = 0;
#endif

// A table of Count vectors in registers.
template <class Element, int Count>
struct TableInRegisters {
  using S = SplineVector<Element>;
  typename S::W entries[Count];

  LIPDEPLOY_INLINE typename S::W at(typename S::I index) const {
    if constexpr (Count == 1) {
      return __builtin_shuffle(entries[0], index);
    } else if constexpr (Count == 2) {
      return __builtin_shuffle(entries[0], entries[1], index);
    } else {
      const auto low = __builtin_shuffle(entries[0], entries[1], index);
      const auto high = __builtin_shuffle(entries[2], entries[3], index);
      return index < 2 * S::L ? low : high;
    }
  }
};

template <class Element>
struct Spline {
  using S = SplineVector<Element>;
  using Bits = typename S::Bits;
  using Work = typename S::Work;
  using B = typename S::B;
  using W = typename S::W;
  using K = typename S::K;
  static constexpr int L = S::L;

  const SplineCall<Element>& call;
  S vector;

  // An interval's value at its left end, and what it gains until the right one.
  struct Ends {
    W left, rise;
  };

  // ---- one vector after the other
  // A Lookup finds the ends of intervals in three steps: it notes which ones, fetches what is needed, gives them.

  template <class Lookup>
  LIPDEPLOY_INLINE void one_by_one(const Lookup& given, const Bits* x, Bits* y, int64_t vectors) const {
    const S v = vector;
    Lookup lookup = given;
    typename Lookup::Noted noted{};
    for (int64_t i = 0; i < vectors; ++i) {
      const W number = S::widen(load<B>(x + i * L));
      const K interval = S::truncated(v.position(v.inside(number)));
      lookup.template note<0>(interval, noted);
      lookup.template pass<1>();
      const Ends ends = lookup.ends(lookup.fetch(noted));
      const W product = S::template product<true>(v.offset(number, interval), ends.rise);
      store<false>(y + i * L, S::narrow(ends.left + product / v.h));
    }
  }

  // ---- many vectors, in stages
  // The steps of a vector wait for each other, and a processor can hold only so many instructions that wait: done one vector
  // after the other, splines of neighbours take a quarter more time. So each round does one stage of each of several vectors,
  // and nothing in a round waits for the rest of it.

  static constexpr int kSlots = 4;  // what a stage leaves for a later one lies in its vector's slot
  static_assert(kSlots * L <= kPlacesAhead);

  template <bool Stream, bool FlatEnds, class Lookup>
  struct Staged {
    static constexpr int kFetched = 2 + Lookup::kRoundsNoted, kStored = kFetched + 3;
    static_assert(kFetched < 2 + kSlots && kStored <= 2 * kSlots);

    const S v;
    Lookup lookup;
    W number[kSlots] = {}, inside[kSlots] = {}, position[kSlots] = {}, offset[kSlots] = {};
    W left[kSlots] = {}, product[kSlots] = {}, quotient[kSlots] = {};
    typename Lookup::Found found[kSlots] = {};

    static constexpr int slot(int vector) { return (vector + 2 * kSlots) % kSlots; }

    // Round U: loads vector U and stores vector U - kStored. Later stages come first, as they read the slots that earlier
    // ones fill anew.
    template <int U, bool Load, bool Store>
    LIPDEPLOY_INLINE void round(const Bits* x, Bits* y, typename Lookup::Noted* noted) {
      if constexpr (Store) {
        constexpr int i = slot(U - kStored);
        store<Stream>(y + (U - kStored) * L, S::narrow(left[i] + quotient[i]));
      }
      constexpr int divided = slot(U - kStored + 1), multiplied = slot(U - kStored + 2);
      quotient[divided] = product[divided] / v.h;
      const Ends ends = lookup.ends(found[multiplied]);
      left[multiplied] = ends.left;
      product[multiplied] = S::template product<FlatEnds>(offset[multiplied], ends.rise);
      found[slot(U - kFetched)] = lookup.fetch(noted[slot(U - kFetched)]);
      constexpr int placed = slot(U - 2), positioned = slot(U - 1), loaded = slot(U);
      const K interval = S::truncated(position[placed]);
      lookup.template note<slot(U)>(interval, noted[placed]);
      offset[placed] = v.offset(number[placed], interval);
      position[positioned] = v.position(inside[positioned]);
      if constexpr (Load) {
        if constexpr (Stream && Lookup::kFetchAhead > 0) __builtin_prefetch(x + (U + Lookup::kFetchAhead) * L);
        number[loaded] = S::widen(load<B>(x + U * L));
        inside[loaded] = v.inside(number[loaded]);
      }
    }

    template <int First, bool Load, bool Store, int... U>
    LIPDEPLOY_INLINE void rounds(const Bits* x, Bits* y, typename Lookup::Noted* noted, std::integer_sequence<int, U...>) {
      (round<First + U, Load, Store || (First + U >= kStored)>(x, y, noted), ...);
      lookup.template pass<kSlots>();
    }

    // A multiple of kSlots, at least twice that.
    LIPDEPLOY_INLINE void run(const Bits* x, Bits* y, int64_t vectors) {
      using All = std::make_integer_sequence<int, kSlots>;
      typename Lookup::Noted noted[kSlots] = {};
      rounds<0, true, false>(x, y, noted, All());
      rounds<kSlots, true, false>(x, y, noted, All());
      for (int64_t i = 2 * kSlots; i < vectors; i += kSlots) rounds<0, true, true>(x + i * L, y + i * L, noted, All());
      const Bits* x_end = x + vectors * L;
      Bits* y_end = y + vectors * L;
      rounds<0, false, true>(x_end, y_end, noted, All());
      rounds<kSlots, false, true>(x_end, y_end, noted, std::make_integer_sequence<int, kStored - kSlots>());
    }
  };

  template <class Lookup>
  LIPDEPLOY_INLINE void apply(const Lookup& lookup, const Bits* x, Bits* y, int64_t count) const {
    if (count < L) {
      Bits few[L] = {};
      __builtin_memcpy(few, x, count * sizeof(Bits));
      one_by_one(lookup, few, few, 1);
      __builtin_memcpy(y, few, count * sizeof(Bits));
      return;
    }
    const int64_t vectors = count / L, staged = vectors < 2 * kSlots ? 0 : vectors / kSlots * kSlots;
    if (staged > 0) {
      if (call.flat_ends) {
        in_stages<true>(lookup, x, y, staged);
      } else {
        in_stages<false>(lookup, x, y, staged);
      }
    }
    const int64_t done = staged * L;
    one_by_one(lookup.from(done), x + done, y + done, vectors - staged);
    // The last vector covers some elements a second time.
    if (count % L != 0) one_by_one(lookup.from(count - L), x + count - L, y + count - L, 1);
  }

  template <bool FlatEnds, class Lookup>
  LIPDEPLOY_INLINE void in_stages(const Lookup& lookup, const Bits* x, Bits* y, int64_t vectors) const {
    constexpr bool kMayStream = sizeof(B) >= 16;
    const Lookup two_before = lookup.from(-2 * L);  // the first round places vector -2
    if (kMayStream && call.stream && aligned_for<B>(y)) {
      Staged<kMayStream, FlatEnds, Lookup>{vector, two_before}.run(x, y, vectors);
    } else {
      Staged<false, FlatEnds, Lookup>{vector, two_before}.run(x, y, vectors);
    }
  }

  // ---- one row of coefficients for a long stretch, in registers

  template <int Count>
  struct InRegisters {
    static constexpr int64_t kFetchAhead = 0;  // vectors
    static constexpr int kRoundsNoted = 1;
    using Noted = typename S::I;
    using Found = typename S::I;
    TableInRegisters<Element, Count> left, rise;

    template <int>
    LIPDEPLOY_INLINE void note(K interval, Noted& noted) const {
      noted = __builtin_convertvector(interval, typename S::I);
    }
    template <int>
    LIPDEPLOY_INLINE void pass() const {}
    LIPDEPLOY_INLINE Found fetch(const Noted& noted) const { return noted; }
    LIPDEPLOY_INLINE Ends ends(const Found& index) const { return {left.at(index), rise.at(index)}; }
    LIPDEPLOY_INLINE const InRegisters& from(int64_t) const { return *this; }
  };

  template <int Count>
  __attribute__((noinline)) void permute(const Work* values, const Bits* x, Bits* y, int64_t count) const {
    const int64_t intervals = call.shape.knots - 1;
    InRegisters<Count> lookup{};
    alignas(64) Work table[2][Count * L] = {};
    for (int64_t k = 0; k < intervals; ++k) {
      table[0][k] = values[k];
      table[1][k] = values[k + 1] - values[k];
    }
    for (int i = 0; i < Count; ++i) {
      lookup.left.entries[i] = load<W>(table[0] + i * L);
      lookup.rise.entries[i] = load<W>(table[1] + i * L);
    }
    apply(lookup, x, y, count);
  }

  LIPDEPLOY_INLINE bool permuted(const Work* values, const Bits* x, Bits* y, int64_t count) const {
    const int64_t intervals = call.shape.knots - 1, vectors = (intervals - 1) / L + 1;
    // Filling the registers must pay.
    if (count < 2 * intervals) return false;
    constexpr int kMost = kMostTableVectors<Work>;
    if constexpr (kMost >= 1) {
      if (vectors == 1) return permute<1>(values, x, y, count), true;
    }
    if constexpr (kMost >= 2) {
      if (vectors == 2) return permute<2>(values, x, y, count), true;
    }
    if constexpr (kMost >= 4) {
      if (vectors <= 4) return permute<4>(values, x, y, count), true;
    }
    return false;
  }

  // ---- any table: the two ends of an interval lie side by side and are fetched as one

  template <bool Starts>
  struct InMemory {
    static constexpr int64_t kFetchAhead = 32;  // saves a twentieth of the time from 64 MiB on
    static constexpr int kRoundsNoted = 3;      // until what was written can be read in smaller pieces
    struct alignas(64) Noted {
      int32_t places[L];
    };
    struct Found {
      W first, second;  // pairs
    };
    const Work* values;
    const int32_t* starts;  // where the row of each element of a period starts; not read without Starts
    int64_t period, at;     // `at`: the next element's place in the period

    template <int Ahead>
    LIPDEPLOY_INLINE void note(K interval, Noted& noted) const {
      if constexpr (Starts) interval += load<K>(starts + at + Ahead * L);
      store<false>(noted.places, interval);
      asm("" : "+m"(noted));  // places are to be read from memory: taken out of the vector they would cost shuffles
    }
    template <int Vectors>
    LIPDEPLOY_INLINE void pass() {
      if constexpr (!Starts) return;
      at += Vectors * L;
      at -= at < period ? 0 : period;
    }
    LIPDEPLOY_INLINE InMemory from(int64_t i) const {
      return {values, starts, period, Starts ? (at + i % period + period) % period : 0};
    }

    // Sixteen bytes at a time go to `first` and to `second` in turns, which is the order that instructions for parts of 16
    // bytes bring back.
    static constexpr int kPart = 16 / sizeof(Work);
    using Parts = std::make_index_sequence<static_cast<size_t>(L / kPart)>;
    LIPDEPLOY_INLINE Found fetch(const Noted& noted) const { return fetch(noted.places, Parts()); }
    template <size_t... Part>
    LIPDEPLOY_INLINE Found fetch(const int32_t* places, std::index_sequence<Part...>) const {
      return {(W)joined(part(places + kPart * Part)...), (W)joined(part(places + kPart * Part + kPart / 2)...)};
    }

    LIPDEPLOY_INLINE Ends ends(const Found& pairs) const { return ends(pairs, typename Shuffle<W, L>::All()); }
    template <size_t... I>
    static LIPDEPLOY_INLINE Ends ends(const Found& pairs, std::index_sequence<I...>) {
      const W left = __builtin_shufflevector(pairs.first, pairs.second, left_of(I)...);
      return {left, __builtin_shufflevector(pairs.first, pairs.second, left_of(I) + 1 ...) - left};
    }
    static constexpr int left_of(int i) {
      const int in_part = i % kPart, half = kPart / 2;
      return (in_part < half ? 0 : L) + i - in_part + 2 * (in_part % half);
    }

    // The ends of the intervals at one place (float64) or at two, which come by one load: with one load each, loads would be
    // what takes the time. The numbers are moved, never computed with.
    using Two = Vector<double, 2>;
    LIPDEPLOY_INLINE Two part(const int32_t* places) const {
      if constexpr (sizeof(Work) == 8) {
        return load<Two>(values + *places);
      } else {
        uint64_t both;
        __builtin_memcpy(&both, places, sizeof(both));
        constexpr bool kLittleEndian = __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__;
        const uint32_t low = static_cast<uint32_t>(both), high = static_cast<uint32_t>(both >> 32);
        const auto *first = ends_at(kLittleEndian ? low : high), *second = ends_at(kLittleEndian ? high : low);
#if defined(__x86_64__)
        return (Two)_mm_loadh_pd(_mm_load_sd(first), second);
#else
        double pairs[2];
        __builtin_memcpy(pairs, first, sizeof(double));
        __builtin_memcpy(pairs + 1, second, sizeof(double));
        return Two{pairs[0], pairs[1]};
#endif
      }
    }
    LIPDEPLOY_INLINE const double* ends_at(uint32_t place) const {
      return reinterpret_cast<const double*>(values + place);
    }
    static LIPDEPLOY_INLINE auto joined(Two a) { return a; }
#if defined(__AVX__)
    static LIPDEPLOY_INLINE auto joined(Two a, Two b) {
      return _mm256_insertf128_pd(_mm256_castpd128_pd256((__m128d)a), (__m128d)b, 1);
    }
#endif
#if defined(__AVX512F__)
    static LIPDEPLOY_INLINE auto joined(Two a, Two b, Two c, Two d) {
      return _mm512_insertf64x4(_mm512_castpd256_pd512(joined(a, b)), joined(c, d), 1);
    }
#endif
  };

  template <bool Starts>
  __attribute__((noinline)) void fetch(const Work* values, int64_t at, const Bits* x, Bits* y, int64_t count) const {
    apply(InMemory<Starts>{values, call.starts, call.period, at}, x, y, count);
  }

  LIPDEPLOY_INLINE void elements(const Bits* x, Bits* y, int64_t begin, int64_t end) const {
    const LinearSplineShape& shape = call.shape;
    if (call.starts != nullptr) return fetch<true>(call.values, begin % call.period, x, y, end - begin);
    const bool one_row = shape.rows == 1;
    const int64_t stretch = one_row ? shape.elements() : shape.inner;
    for (int64_t i = begin; i < end;) {
      const int64_t here = stretch - i % stretch, count = here < end - i ? here : end - i;
      const int64_t channel = one_row ? 0 : i / shape.inner % shape.channels;
      const Work* values = call.values + channel * shape.knots;
      if (!permuted(values, x + (i - begin), y + (i - begin), count)) fetch<false>(values, 0, x + (i - begin), y + (i - begin), count);
      i += count;
    }
  }
};

template <class Element>
void spline_elements(const SplineCall<Element>& call, const typename Element::Bits* x, typename Element::Bits* y, int64_t begin,
                     int64_t end) {
  using Work = typename Element::Work;
  const bool many = end - begin >= 16 * call.shape.knots;
  const SplineVector<Element> vector(static_cast<Work>(call.shape.lower), static_cast<Work>(call.shape.knot_spacing),
                                     call.shape.knots, many);
  Spline<Element>{call, vector}.elements(x, y, begin, end);
  if (call.stream) finish_streaming();
}

}  // namespace lipdeploy::LIPDEPLOY_ISA
