// 3-D multi-scale deformable attention on the CPU, forward and backward, in float and double.
//
// A slice is what one head of one batch element has in `value`. Slices are packed, a few at a time, into rows of whole
// vectors: neighbouring cells become neighbours in memory, and each level gets a row of zeros that stands for all that
// lies outside of it, so that no sample needs a branch. Locations and softmax weights live for one query and head.
//
// Every number is computed by one thread in one order, whichever thread that is: results are the same bit by bit
// whatever the number of threads. Layouts are those of ops.py.

#include <algorithm>
#include <atomic>
#include <limits>
#include <memory>
#include <new>
#include <type_traits>

#include "simd.h"

extern "C" {

typedef void (*ParallelFunction)(int64_t begin, int64_t end, void* context);
typedef int32_t (*ParallelFor)(int64_t begin, int64_t end, int64_t grain_size, ParallelFunction, void* context);

// Mirrored by `_Problem` in cpu.py. All tensors are contiguous and of the type computed in.
struct Problem {
  const void* value;
  const int64_t* shapes;
  const void* samples;           // sampling offsets, or sampling locations where there are no reference points
  const void* weights;           // attention logits, or attention weights where there are no reference points
  const void* reference_points;  // or null
  const void* offset_scale;      // or null
  const void* grad_output;
  void* output;
  void* grad_value;      // or null: not asked for
  void* grad_samples;    // by the locations; or null: neither this nor the next is asked for
  void* grad_weights;
  void* packed;  // room for num_packed slices
  int64_t batch_size, num_cells, num_heads, head_dim, num_queries, num_levels, num_points;
  int64_t num_packed;
  int64_t num_threads;
  ParallelFor parallel_for;
};

}  // extern "C"

namespace {

constexpr int kAxes = 3;     // x, y, t
constexpr int kCorners = 8;  // bit 0 of a corner's number: the one at higher x; bit 1: at higher y; bit 2: at higher t
constexpr int64_t kQueriesPerItem = 64;
constexpr int64_t kRowsPerItem = 1024;
// Memory is touched this many samples before it is needed: the processor by itself does not look that far.
constexpr int64_t kSamplesAhead = 4;
constexpr int kBytesPerCacheLine = 64;

inline int64_t round_up(int64_t count, int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }
inline int64_t num_items(int64_t count, int64_t per_item) { return (count + per_item - 1) / per_item; }

inline void prefetch(const void* from, int64_t num_bytes) {
  for (int64_t byte = 0; byte < num_bytes; byte += kBytesPerCacheLine) {
    __builtin_prefetch(static_cast<const char*>(from) + byte);
  }
}

// Calls work(take) in each thread; take(item) hands out the items 0, 1, ..., each once, and is false at the end.
template <typename Work>
void parallel(const Problem& problem, int64_t num_items, const Work& work) {
  struct Context {
    const Work& work;
    int64_t num_items;
    std::atomic<int64_t> next;
  } context{work, num_items, {0}};
  const auto run = [](int64_t, int64_t, void* pointer) {
    auto& context = *static_cast<Context*>(pointer);
    context.work([&context](int64_t& item) { return (item = context.next.fetch_add(1)) < context.num_items; });
  };
  const int32_t error = problem.parallel_for(0, std::min(problem.num_threads, num_items), 1, run, &context);
  if (error != 0) throw std::bad_alloc();  // the only thing that can fail in there
}

// All samples of one query and head: arrays with one entry per sample, padded to whole vectors by samples that are
// outside and weigh nothing.
template <typename T>
class Samples {
 public:
  const int64_t count, padded_count;
  T* attention;
  T* offset[kAxes];
  T* reference[kAxes];
  T* fraction[kAxes];  // of the way from the lower to the higher corner, in [0, 1)
  Index<T>* row[kCorners];
  T* corner_weight[kCorners];  // interpolation weight times attention
  T* dot[kCorners];            // of the corner's values with the gradient of the output
  T* gradient[kAxes];
  T* grad_weight;
  T* channels;  // the output, or its gradient, of one query and head, padded to whole vectors

  Samples(const Problem& problem, int64_t padded_head_dim)
      : count(problem.num_levels * problem.num_points),
        padded_count(round_up(count, kLanes<T>)),
        storage_(new T[kArrays * padded_count + padded_head_dim]()) {
    T* next = storage_.get();
    const auto take = [&next, this] { return (next += padded_count) - padded_count; };
    // Indices are as wide as T.
    const auto take_index = [&take] { return reinterpret_cast<Index<T>*>(take()); };
    attention = take();
    grad_weight = take();
    for (int axis = 0; axis < kAxes; ++axis) {
      for (T** array : {offset, reference, fraction, gradient, scale_, size_}) array[axis] = take();
    }
    for (int corner = 0; corner < kCorners; ++corner) {
      corner_weight[corner] = take();
      dot[corner] = take();
      row[corner] = take_index();
    }
    first_row_ = take_index();
    outside_row_ = take_index();
    channels = next;
    describe_levels(problem);
  }

  // Finds the rows around each sample and their weights, from `reference`, `offset` and `attention`.
  void locate() {
    for (int64_t i = 0; i < padded_count; i += kLanes<T>) {
      const Axis x = locate_on_axis(0, i), y = locate_on_axis(1, i), t = locate_on_axis(2, i);
      const Integer<T> width = to_integer(load<Real<T>>(size_[0] + i));
      const Integer<T> height = to_integer(load<Real<T>>(size_[1] + i));
      const Integer<T> lowest = load<Integer<T>>(first_row_ + i) + (t.low * height + y.low) * width + x.low;
      const Integer<T> outside_row = load<Integer<T>>(outside_row_ + i);
      for (int corner = 0; corner < kCorners; ++corner) {
        const int high_x = corner & 1, high_y = corner >> 1 & 1, high_t = corner >> 2;
        const Integer<T> inside_row = lowest + high_x + (high_y + high_t * height) * width;
        const Integer<T> outside = x.outside[high_x] | y.outside[high_y] | t.outside[high_t];
        store(row[corner] + i, outside ? outside_row : inside_row);
        store(corner_weight[corner] + i,
              load<Real<T>>(attention + i) * t.weight[high_t] * y.weight[high_y] * x.weight[high_x]);
      }
    }
  }

  // Gradients by the location and by the attention weight of each sample, from `dot`.
  void differentiate() {
    for (int64_t i = 0; i < padded_count; i += kLanes<T>) {
      const Real<T> x = load<Real<T>>(fraction[0] + i), y = load<Real<T>>(fraction[1] + i);
      const Real<T> t = load<Real<T>>(fraction[2] + i), weight = load<Real<T>>(attention + i);
      // Interpolated along x in the four rows of corners, then along y, then along t; slopes alike.
      Real<T> in_row[4], slope_x_in_row[4], in_plane[2], slope_x_in_plane[2], slope_y_in_plane[2];
      for (int r = 0; r < 4; ++r) {
        const Real<T> low = load<Real<T>>(dot[2 * r] + i);
        slope_x_in_row[r] = load<Real<T>>(dot[2 * r + 1] + i) - low;
        in_row[r] = low + x * slope_x_in_row[r];
      }
      for (int plane = 0; plane < 2; ++plane) {
        const int r = 2 * plane;
        slope_y_in_plane[plane] = in_row[r + 1] - in_row[r];
        in_plane[plane] = in_row[r] + y * slope_y_in_plane[plane];
        slope_x_in_plane[plane] = slope_x_in_row[r] + y * (slope_x_in_row[r + 1] - slope_x_in_row[r]);
      }
      const Real<T> slope[kAxes] = {
          slope_x_in_plane[0] + t * (slope_x_in_plane[1] - slope_x_in_plane[0]),
          slope_y_in_plane[0] + t * (slope_y_in_plane[1] - slope_y_in_plane[0]),
          in_plane[1] - in_plane[0],
      };
      for (int axis = 0; axis < kAxes; ++axis) {
        store(gradient[axis] + i, weight * load<Real<T>>(size_[axis] + i) * slope[axis]);
      }
      store(grad_weight + i, in_plane[0] + t * slope[2]);
    }
  }

 private:
  static constexpr int kArrays = 2 + 6 * kAxes + 3 * kCorners + 2;
  std::unique_ptr<T[]> storage_;
  // Of each sample's level:
  T* scale_[kAxes];
  T* size_[kAxes];
  Index<T>*first_row_, *outside_row_;

  struct Axis {
    Integer<T> low;         // index of the lower corner
    Integer<T> outside[2];  // whether the lower and the higher corner are outside
    Real<T> weight[2];
  };

  static Integer<T> to_integer(Real<T> x) { return __builtin_convertvector(x, Integer<T>); }

  void describe_levels(const Problem& problem) {
    const T* scale = static_cast<const T*>(problem.offset_scale);
    Index<T> first_row = 0;
    for (int64_t level = 0; level < problem.num_levels; ++level) {
      const int64_t* shape = problem.shapes + kAxes * level;
      for (int64_t i = level * problem.num_points; i < (level + 1) * problem.num_points; ++i) {
        for (int axis = 0; axis < kAxes; ++axis) {
          size_[axis][i] = shape[kAxes - 1 - axis];  // shapes are (t, h, w)
          scale_[axis][i] = scale == nullptr ? 1 : scale[kAxes * level + axis];
        }
        first_row_[i] = first_row;
        outside_row_[i] = problem.num_cells + level;
      }
      first_row += shape[0] * shape[1] * shape[2];
    }
  }

  Axis locate_on_axis(int axis, int64_t i) const {
    const Real<T> size = load<Real<T>>(size_[axis] + i);
    const Real<T> distance = load<Real<T>>(offset[axis] + i) * load<Real<T>>(scale_[axis] + i);
    Real<T> x = (load<Real<T>>(reference[axis] + i) + distance) * size - T(0.5);
    // What is not near the level, NaN and infinity too, moves to -2: both corners outside.
    x = ((x > T(-1)) & (x < size)) ? x : Real<T>{} - 2;
    Integer<T> low = to_integer(x);
    low += __builtin_convertvector(low, Real<T>) > x;
    const Real<T> higher = x - __builtin_convertvector(low, Real<T>);
    store(fraction[axis] + i, higher);
    return {low, {low < 0, (low < -1) | (low + 1 >= to_integer(size))}, {1 - higher, higher}};
  }
};

template <typename T>
class DeformableAttention {
 public:
  explicit DeformableAttention(const Problem& problem)
      : p_(problem),
        padded_head_dim_(round_up(problem.head_dim, kLanes<T>)),
        rows_per_slice_(problem.num_cells + problem.num_levels),
        packed_(static_cast<T*>(problem.packed)) {}

  void forward() {
    for_groups_of_slices([this](int64_t first, int64_t count) {
      pack(first, count);
      for_queries(first, count, [this](Samples<T>& samples, const T* slice, const Query& query) {
        for_channels([&](auto vectors, int64_t channel) {
          accumulate<vectors>(samples, slice + channel, samples.channels + channel);
        });
        std::copy_n(samples.channels, p_.head_dim, static_cast<T*>(p_.output) + query.in_heads * p_.head_dim);
      });
    });
  }

  void backward() {
    for_groups_of_slices([this](int64_t first, int64_t count) {
      if (p_.grad_samples != nullptr) {
        pack(first, count);
        for_queries(first, count, [this](Samples<T>& samples, const T* slice, const Query& query) {
          backward_samples(samples, slice, query);
        });
      }
      if (p_.grad_value != nullptr) {
        for_rows(first, count, [this](T* row, int64_t) { std::fill_n(row, padded_head_dim_, T(0)); });
        backward_value(first, count);
        unpack(first, count);
      }
    });
  }

 private:
  const Problem& p_;
  const int64_t padded_head_dim_, rows_per_slice_;
  T* const packed_;

  struct Query {
    int64_t in_batches, in_heads;  // index among the queries of all batch elements, and of all heads as well
  };

  Query query_at(int64_t slice, int64_t query) const {
    const int64_t in_batches = slice / p_.num_heads * p_.num_queries + query;
    return {in_batches, in_batches * p_.num_heads + slice % p_.num_heads};
  }

  template <typename Body>
  void for_groups_of_slices(const Body& body) {
    const int64_t num_slices = p_.batch_size * p_.num_heads;
    for (int64_t first = 0; first < num_slices; first += p_.num_packed) {
      body(first, std::min(p_.num_packed, num_slices - first));
    }
  }

  // Calls body(vectors, channel) for channels in groups of 4, 2 or 1 vectors, which then are held in registers.
  template <typename Body>
  void for_channels(const Body& body) const {
    int64_t channel = 0;
    const auto cover = [&](auto vectors) {
      constexpr int64_t width = vectors * kLanes<T>;
      for (; channel + width <= padded_head_dim_; channel += width) body(vectors, channel);
    };
    cover(std::integral_constant<int, 4>{});
    cover(std::integral_constant<int, 2>{});
    cover(std::integral_constant<int, 1>{});
  }

  // Calls body(packed row, index in value, or -1 for the row outside of a level) for all rows of a group of slices.
  template <typename Body>
  void for_rows(int64_t first_slice, int64_t num_slices, const Body& body) {
    const int64_t items = num_items(rows_per_slice_, kRowsPerItem);
    parallel(p_, num_slices * items, [&](auto take) {
      for (int64_t item; take(item);) {
        const int64_t slice = first_slice + item / items, begin = item % items * kRowsPerItem;
        for (int64_t row = begin; row < std::min(begin + kRowsPerItem, rows_per_slice_); ++row) {
          const int64_t cell = slice / p_.num_heads * p_.num_cells + row;
          body(packed_ + (item / items * rows_per_slice_ + row) * padded_head_dim_,
               row < p_.num_cells ? (cell * p_.num_heads + slice % p_.num_heads) * p_.head_dim : -1);
        }
      }
    });
  }

  void pack(int64_t first_slice, int64_t num_slices) {
    for_rows(first_slice, num_slices, [this](T* row, int64_t in_value) {
      std::fill_n(row, padded_head_dim_, T(0));
      if (in_value >= 0) std::copy_n(static_cast<const T*>(p_.value) + in_value, p_.head_dim, row);
    });
  }

  void unpack(int64_t first_slice, int64_t num_slices) {
    for_rows(first_slice, num_slices, [this](const T* row, int64_t in_value) {
      if (in_value >= 0) std::copy_n(row, p_.head_dim, static_cast<T*>(p_.grad_value) + in_value);
    });
  }

  // Calls body(samples, packed slice, query) for all queries of a group of slices, with the samples in place.
  template <typename Body>
  void for_queries(int64_t first_slice, int64_t num_slices, const Body& body) {
    const int64_t items = num_items(p_.num_queries, kQueriesPerItem);
    parallel(p_, num_slices * items, [&](auto take) {
      Samples<T> samples(p_, padded_head_dim_);
      for (int64_t item; take(item);) {
        const int64_t slice = item / items, begin = item % items * kQueriesPerItem;
        for (int64_t index = begin; index < std::min(begin + kQueriesPerItem, p_.num_queries); ++index) {
          const Query query = query_at(first_slice + slice, index);
          prepare(samples, query);
          body(samples, packed_ + slice * rows_per_slice_ * padded_head_dim_, query);
        }
      }
    });
  }

  // Reads offsets and weights of one query and head, and locates its samples.
  void prepare(Samples<T>& samples, const Query& query) const {
    const T* offsets = static_cast<const T*>(p_.samples) + query.in_heads * samples.count * kAxes;
    const T* weights = static_cast<const T*>(p_.weights) + query.in_heads * samples.count;
    // The next query of the same head; past the end of the tensors nothing is fetched.
    prefetch(offsets + p_.num_heads * samples.count * kAxes, samples.count * kAxes * sizeof(T));
    prefetch(weights + p_.num_heads * samples.count, samples.count * sizeof(T));

    for (int64_t i = 0; i < samples.count; ++i) {
      for (int axis = 0; axis < kAxes; ++axis) samples.offset[axis][i] = offsets[kAxes * i + axis];
    }
    std::copy_n(weights, samples.count, samples.attention);
    if (p_.reference_points != nullptr) {
      read_reference_points(samples, query);
      softmax(samples);
    }
    samples.locate();
  }

  void read_reference_points(Samples<T>& samples, const Query& query) const {
    const T* points = static_cast<const T*>(p_.reference_points) + query.in_batches * p_.num_levels * kAxes;
    for (int64_t level = 0; level < p_.num_levels; ++level) {
      for (int axis = 0; axis < kAxes; ++axis) {
        std::fill_n(samples.reference[axis] + level * p_.num_points, p_.num_points, points[kAxes * level + axis]);
      }
    }
  }

  static void softmax(Samples<T>& samples) {
    T* const logits = samples.attention;
    std::fill(logits + samples.count, logits + samples.padded_count, -std::numeric_limits<T>::infinity());
    const T highest = *std::max_element(logits, logits + samples.count);
    Real<T> sums{};
    for (int64_t i = 0; i < samples.padded_count; i += kLanes<T>) {
      const Real<T> exponentials = exponential(load<Real<T>>(logits + i) - highest);
      store(logits + i, exponentials);
      sums += exponentials;
    }
    const T sum = sum_of_lanes<T>(sums);
    for (int64_t i = 0; i < samples.padded_count; i += kLanes<T>) store(logits + i, load<Real<T>>(logits + i) / sum);
  }

  template <int kVectors>
  void prefetch_rows(const Samples<T>& samples, const T* slice, int64_t i) const {
    if (i >= samples.count) return;
    for (int corner = 0; corner < kCorners; ++corner) {
      prefetch(slice + samples.row[corner][i] * padded_head_dim_, kVectors * sizeof(Real<T>));
    }
  }

  const T* row_of(const Samples<T>& samples, int corner, int64_t i, const T* slice) const {
    return slice + static_cast<int64_t>(samples.row[corner][i]) * padded_head_dim_;
  }

  template <int kVectors>
  void accumulate(const Samples<T>& samples, const T* slice, T* output) const {
    Real<T> sums[2][kVectors] = {};  // two, so that additions wait less for each other
    for (int64_t i = 0; i < samples.count; ++i) {
      prefetch_rows<kVectors>(samples, slice, i + kSamplesAhead);
      for (int corner = 0; corner < kCorners; ++corner) {
        const T* row = row_of(samples, corner, i, slice);
        const T weight = samples.corner_weight[corner][i];
        for (int v = 0; v < kVectors; ++v) sums[corner % 2][v] += load<Real<T>>(row + v * kLanes<T>) * weight;
      }
    }
    for (int v = 0; v < kVectors; ++v) store(output + v * kLanes<T>, sums[0][v] + sums[1][v]);
  }

  void backward_samples(Samples<T>& samples, const T* slice, const Query& query) const {
    read_grad_output(samples, query);
    for (T* dot : samples.dot) std::fill_n(dot, samples.padded_count, T(0));
    for_channels([&](auto vectors, int64_t channel) {
      multiply<vectors>(samples, slice + channel, samples.channels + channel);
    });
    samples.differentiate();

    T* const grad_samples = static_cast<T*>(p_.grad_samples) + query.in_heads * samples.count * kAxes;
    for (int64_t i = 0; i < samples.count; ++i) {
      for (int axis = 0; axis < kAxes; ++axis) grad_samples[kAxes * i + axis] = samples.gradient[axis][i];
    }
    T* const grad_weights = static_cast<T*>(p_.grad_weights) + query.in_heads * samples.count;
    if (p_.reference_points != nullptr) {
      backward_softmax(samples, grad_weights);
    } else {
      std::copy_n(samples.grad_weight, samples.count, grad_weights);
    }
  }

  static void backward_softmax(const Samples<T>& samples, T* grad_logits) {
    Real<T> sums{};
    for (int64_t i = 0; i < samples.padded_count; i += kLanes<T>) {
      sums += load<Real<T>>(samples.attention + i) * load<Real<T>>(samples.grad_weight + i);
    }
    const T mean = sum_of_lanes<T>(sums);
    for (int64_t i = 0; i < samples.count; ++i) {
      grad_logits[i] = samples.attention[i] * (samples.grad_weight[i] - mean);
    }
  }

  void read_grad_output(Samples<T>& samples, const Query& query) const {
    std::copy_n(static_cast<const T*>(p_.grad_output) + query.in_heads * p_.head_dim, p_.head_dim, samples.channels);
  }

  template <int kVectors>
  void multiply(Samples<T>& samples, const T* slice, const T* grad_output) const {
    for (int64_t i = 0; i < samples.padded_count; i += kLanes<T>) {
      for (int corner = 0; corner < kCorners; ++corner) {
        Real<T> products[kLanes<T>] = {};
        for (int lane = 0; lane < kLanes<T>; ++lane) {
          const T* row = row_of(samples, corner, i + lane, slice);
          for (int v = 0; v < kVectors; ++v) {
            products[lane] += load<Real<T>>(row + v * kLanes<T>) * load<Real<T>>(grad_output + v * kLanes<T>);
          }
        }
        T* const dot = samples.dot[corner] + i;
        store(dot, load<Real<T>>(dot) + sums_of_lanes<T>(products));
      }
    }
  }

  // A thread owns a slice, or a level of it where there are fewer slices than threads; levels share no rows.
  void backward_value(int64_t first_slice, int64_t num_slices) {
    const int64_t items = num_slices < p_.num_threads ? p_.num_levels : 1;
    parallel(p_, num_slices * items, [&](auto take) {
      Samples<T> samples(p_, padded_head_dim_);
      const int64_t samples_per_item = samples.count / items;
      for (int64_t item; take(item);) {
        const int64_t slice = item / items, begin = item % items * samples_per_item;
        for (int64_t index = 0; index < p_.num_queries; ++index) {
          const Query query = query_at(first_slice + slice, index);
          prepare(samples, query);
          read_grad_output(samples, query);
          for_channels([&](auto vectors, int64_t channel) {
            scatter<vectors>(samples, begin, begin + samples_per_item, samples.channels + channel,
                             packed_ + slice * rows_per_slice_ * padded_head_dim_ + channel);
          });
        }
      }
    });
  }

  template <int kVectors>
  void scatter(const Samples<T>& samples, int64_t begin, int64_t end, const T* grad_output, T* slice) const {
    for (int64_t i = begin; i < end; ++i) {
      prefetch_rows<kVectors>(samples, slice, i + kSamplesAhead);
      for (int corner = 0; corner < kCorners; ++corner) {
        T* const row = const_cast<T*>(row_of(samples, corner, i, slice));
        const T weight = samples.corner_weight[corner][i];
        for (int v = 0; v < kVectors; ++v) {
          T* const lanes = row + v * kLanes<T>;
          store(lanes, load<Real<T>>(lanes) + load<Real<T>>(grad_output + v * kLanes<T>) * weight);
        }
      }
    }
  }
};

template <typename T>
int run(const Problem& problem, void (DeformableAttention<T>::*pass)()) {
  try {
    (DeformableAttention<T>(problem).*pass)();
  } catch (const std::bad_alloc&) {
    return 1;
  }
  return 0;
}

}  // namespace

// Each returns 0, or 1 if memory ran out.
#define EXPORT extern "C" __attribute__((visibility("default")))
EXPORT int forward_float(const Problem& problem) { return run(problem, &DeformableAttention<float>::forward); }
EXPORT int forward_double(const Problem& problem) { return run(problem, &DeformableAttention<double>::forward); }
EXPORT int backward_float(const Problem& problem) { return run(problem, &DeformableAttention<float>::backward); }
EXPORT int backward_double(const Problem& problem) { return run(problem, &DeformableAttention<double>::backward); }
