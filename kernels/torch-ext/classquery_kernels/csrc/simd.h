// Vectors of 32 bytes for GCC and Clang, which lower them to whatever the processor has.

#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

template <typename T>
struct VectorTypes;

template <>
struct VectorTypes<float> {
  typedef float Real __attribute__((vector_size(32)));
  typedef int32_t Integer __attribute__((vector_size(32)));
  using Index = int32_t;
};

template <>
struct VectorTypes<double> {
  typedef double Real __attribute__((vector_size(32)));
  typedef int64_t Integer __attribute__((vector_size(32)));
  using Index = int64_t;
};

// Lanes of T; integers as wide as T, which comparisons of Real give as well: -1 where true, 0 where false.
template <typename T>
using Real = typename VectorTypes<T>::Real;
template <typename T>
using Integer = typename VectorTypes<T>::Integer;
template <typename T>
using Index = typename VectorTypes<T>::Index;
template <typename T>
constexpr int kLanes = 32 / sizeof(T);

template <typename Vector>
inline Vector load(const void* from) {
  Vector vector;
  std::memcpy(&vector, from, sizeof vector);
  return vector;
}

template <typename Vector>
inline void store(void* to, Vector vector) {
  std::memcpy(to, &vector, sizeof vector);
}

template <typename T>
inline T sum_of_lanes(Real<T> vector) {
  T sum = 0;
  for (int lane = 0; lane < kLanes<T>; ++lane) sum += vector[lane];
  return sum;
}

template <typename T, std::size_t... I>
inline Real<T> add_neighbours(Real<T> a, Real<T> b, std::index_sequence<I...>) {
#ifdef __clang__
  return __builtin_shufflevector(a, b, (2 * I)...) + __builtin_shufflevector(a, b, (2 * I + 1)...);
#else
  return __builtin_shuffle(a, b, Integer<T>{(2 * I)...}) + __builtin_shuffle(a, b, Integer<T>{(2 * I + 1)...});
#endif
}

// The sum over the lanes of each of kLanes vectors.
template <typename T, int kCount = kLanes<T>>
inline Real<T> sums_of_lanes(const Real<T>* vectors) {
  if constexpr (kCount == 1) {
    return vectors[0];
  } else {
    return add_neighbours<T>(sums_of_lanes<T, kCount / 2>(vectors), sums_of_lanes<T, kCount / 2>(vectors + kCount / 2),
                             std::make_index_sequence<kLanes<T>>{});
  }
}

// exp(x) for x <= 0, by its series on [-ln 2 / 2, ln 2 / 2]; 0 below the smallest normal number, NaN of NaN.
inline Real<float> exponential(Real<float> x) {
  const float lowest = -87.0f;
  const Real<float> clamped = x > lowest ? x : Real<float>{} + lowest;
  const Integer<float> power = __builtin_convertvector(clamped * 1.44269504f - 0.5f, Integer<float>);
  const Real<float> multiple = __builtin_convertvector(power, Real<float>);
  // ln 2 in two parts, so that the first product is exact.
  const Real<float> r = clamped - multiple * 0.693359375f + multiple * 2.12194440e-4f;
  Real<float> series = r / 5040 + 1.0f / 720;
  series = series * r + 1.0f / 120;
  series = series * r + 1.0f / 24;
  series = series * r + 1.0f / 6;
  series = series * r + 0.5f;
  series = series * (r * r) + r + 1;
  const Integer<float> bits = (power + 127) << 23;
  return x > lowest ? series * load<Real<float>>(&bits) : (x <= lowest ? Real<float>{} : x);
}

inline Real<double> exponential(Real<double> x) {
  for (int lane = 0; lane < kLanes<double>; ++lane) x[lane] = std::exp(x[lane]);
  return x;
}
