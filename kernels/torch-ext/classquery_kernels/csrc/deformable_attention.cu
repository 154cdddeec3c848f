// 3-D multi-scale deformable attention on CUDA GPUs, forward and backward.
//
// Compiled at run time for one configuration, which cuda.py gives by macros:
//   VALUE      type of value, output and the gradient of the output: float, double, Half or BFloat16
//   REAL       type of all else, and of every sum: double with double values, float otherwise
//   NUM_HEADS, HEAD_DIM, NUM_LEVELS, NUM_POINTS
//   FUSED      1 if samples and weights are offsets and logits, 0 if they are locations and attention weights
//   VECTOR     channels that a lane takes at once; a divisor of HEAD_DIM, and at most 16 bytes
//   LANES      lanes of a group; a power of two, at most a warp
//   THREADS    of a block
//
// A group works on one query and head. Its lanes first locate one sample each and leave the eight corners in shared
// memory; then, sample by sample, each lane takes its channels of all corners. The groups of a block take neighbouring
// queries of the same head, which look at the same cells.
//
// A corner outside of the level repeats one inside, with weight zero, so that loads need no branch.

// Written out here since NVRTC has no headers of its own for them.
struct Half {
  unsigned short bits;
};
struct BFloat16 {
  unsigned short bits;
};

// Whether the type is the upper half of a float: then a pair is taken apart by one instruction each.
template <typename T>
constexpr bool kIsUpperHalf = false;
template <>
constexpr bool kIsUpperHalf<BFloat16> = true;

using Value = VALUE;
using Real = REAL;

constexpr int kAxes = 3;     // x, y, t
constexpr int kCorners = 8;  // bit 0 of a corner's number: the one at higher x; bit 1: at higher y; bit 2: at higher t
constexpr int kSamples = NUM_LEVELS * NUM_POINTS;
constexpr long long kCellStride = NUM_HEADS * HEAD_DIM;
constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffff;

constexpr int kVectors = HEAD_DIM / VECTOR;
constexpr int kTurns = (kVectors + LANES - 1) / LANES;
constexpr int kGroups = THREADS / LANES;

// Mirrored by `_Problem` in cuda.py; see there for the shapes.
struct Problem {
  const Value* value;
  const Real* samples;
  const Real* weights;
  const Real* reference_points;
  const Real* offset_scale;
  const Value* grad_output;
  Value* output;
  Real* grad_value;    // or null: not asked for
  Real* grad_samples;  // by the locations; or null: neither this nor the next is asked for
  Real* grad_weights;
  long long num_slices, num_cells, num_queries;  // slices: heads of batch elements
};

struct Levels {
  int shape[NUM_LEVELS][kAxes];  // (t, h, w)
};

template <typename T>
struct alignas(16) Four {
  T of[4];
};

// ---- Numbers of 16 bits ----

__device__ inline float to_real(float x) { return x; }
__device__ inline double to_real(double x) { return x; }
__device__ inline float to_real(BFloat16 x) { return __uint_as_float(static_cast<unsigned>(x.bits) << 16); }

__device__ inline float to_real(Half x) {
#ifdef __CUDA_ARCH__
  float real;
  asm("cvt.f32.f16 %0, %1;" : "=f"(real) : "h"(x.bits));
  return real;
#else
  return emulated_half_to_float(x.bits);
#endif
}

__device__ inline void round_to(float real, float& x) { x = real; }
__device__ inline void round_to(double real, double& x) { x = real; }

__device__ inline void round_to(float real, BFloat16& x) {
  const unsigned bits = __float_as_uint(real);
  // To nearest, ties to even; a NaN keeps its upper bits and stays one.
  x.bits = (real == real ? bits + 0x7fff + (bits >> 16 & 1) : bits | 0x400000) >> 16;
}

__device__ inline void round_to(float real, Half& x) {
#ifdef __CUDA_ARCH__
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(x.bits) : "f"(real));
#else
  x.bits = emulated_float_to_half(real);
#endif
}

// ---- Vectors of channels ----

// The word that holds a vector: loads and stores of words are single instructions.
template <int kBytes>
struct Word;
template <>
struct Word<16> {
  using Type = uint4;
};
template <>
struct Word<8> {
  using Type = uint2;
};
template <>
struct Word<4> {
  using Type = unsigned;
};
template <>
struct Word<2> {
  using Type = unsigned short;
};

union Vector {
  typename Word<VECTOR * sizeof(Value)>::Type word;
  Value of[VECTOR];
  unsigned pairs[(VECTOR + 1) / 2];  // of values of 16 bits

  __device__ Vector() {}
};

__device__ inline void load(const Value* from, Real (&to)[VECTOR]) {
  Vector vector;
  vector.word = *reinterpret_cast<const decltype(vector.word)*>(from);
#pragma unroll
  for (int c = 0; c < VECTOR; ++c) {
    if (VECTOR > 1 && kIsUpperHalf<Value>) {
      to[c] = __uint_as_float(c % 2 == 0 ? vector.pairs[c / 2] << 16 : vector.pairs[c / 2] & 0xffff0000);
    } else {
      to[c] = to_real(vector.of[c]);
    }
  }
}

__device__ inline void store(Value* to, const Real (&from)[VECTOR]) {
  Vector vector;
#pragma unroll
  for (int c = 0; c < VECTOR; ++c) round_to(from[c], vector.of[c]);
  *reinterpret_cast<decltype(vector.word)*>(to) = vector.word;
}

__device__ inline void add_four(Real* to, float4 four) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  atomicAdd(reinterpret_cast<float4*>(to), four);
#else
  atomicAdd(to, four.x), atomicAdd(to + 1, four.y), atomicAdd(to + 2, four.z), atomicAdd(to + 3, four.w);
#endif
}

// Adds to memory what other threads add to as well, four floats at a time where the GPU can.
__device__ inline void add(Real* to, const Real (&vector)[VECTOR]) {
  constexpr bool in_fours = sizeof(Real) == sizeof(float) && VECTOR % 4 == 0;
#pragma unroll
  for (int c = 0; c < VECTOR; c += in_fours ? 4 : 1) {
    if (in_fours) {
      add_four(to + c, make_float4(vector[c], vector[c + 1], vector[c + 2], vector[c + 3]));
    } else {
      atomicAdd(to + c, vector[c]);
    }
  }
}

// ---- Groups and their samples ----

// What one group, or in `backward_value_in_order` one warp, works on.
struct Query {
  long long value;       // index in value of the head's first channel in the first cell of the batch element
  long long in_batches;  // index among the queries of all batch elements
  long long in_heads;    // and of all heads as well

  __device__ Query(const Problem& problem, long long slice, long long query) {
    const long long batch = slice / NUM_HEADS, head = slice % NUM_HEADS;
    value = (batch * problem.num_cells * NUM_HEADS + head) * HEAD_DIM;
    in_batches = batch * problem.num_queries + query;
    in_heads = in_batches * NUM_HEADS + head;
  }
};

template <int kWidth>
__device__ inline Real sum_over_lanes(Real x) {
#pragma unroll
  for (int distance = 1; distance < kWidth; distance *= 2) x += __shfl_xor_sync(kAllLanes, x, distance, kWidth);
  return x;
}

template <int kWidth>
__device__ inline Real max_over_lanes(Real x) {
#pragma unroll
  for (int distance = 1; distance < kWidth; distance *= 2) {
    const Real other = __shfl_xor_sync(kAllLanes, x, distance, kWidth);
    x = other > x ? other : x;
  }
  return x;
}

// The attention weight of each sample of a query and head; `kWidth` lanes find the normalization together.
template <int kWidth>
class Attention {
 public:
  __device__ Attention(const Problem& problem, const Query& query, int lane)
      : weights_(problem.weights + query.in_heads * kSamples), highest_(0), scale_(1) {
    if constexpr (FUSED) {
      // A NaN may or may not be the highest: it reaches the sum either way.
      Real highest = weights_[0];
      for (int sample = lane; sample < kSamples; sample += kWidth) {
        highest = weights_[sample] > highest ? weights_[sample] : highest;
      }
      highest_ = max_over_lanes<kWidth>(highest);
      Real sum = 0;
      for (int sample = lane; sample < kSamples; sample += kWidth) sum += exp(weights_[sample] - highest_);
      scale_ = 1 / sum_over_lanes<kWidth>(sum);
    }
  }

  // 0 past the last sample.
  __device__ Real operator()(int sample) const {
    if (sample >= kSamples) return 0;
    return FUSED ? exp(weights_[sample] - highest_) * scale_ : weights_[sample];
  }

 private:
  const Real* weights_;
  Real highest_, scale_;
};

// Where a sample lies in its level; past the last sample, nowhere.
struct Sample {
  bool inside = false;         // whether any corner may be
  int level = 0;
  int size[kAxes] = {};        // of the level
  int low[kAxes] = {};         // of the lower corner
  Real fraction[kAxes] = {};   // of the way from the lower to the higher corner, in [0, 1)

  __device__ Sample(const Problem& problem, const Levels& levels, const Query& query, int index) {
    if (index >= kSamples) return;
    inside = true;
    level = index / NUM_POINTS;
#pragma unroll
    for (int axis = 0; axis < kAxes; ++axis) {
      Real location = problem.samples[(query.in_heads * kSamples + index) * kAxes + axis];
      if constexpr (FUSED) {
        location = problem.reference_points[(query.in_batches * NUM_LEVELS + level) * kAxes + axis] +
                   location * problem.offset_scale[level * kAxes + axis];
      }
      size[axis] = levels.shape[level][kAxes - 1 - axis];
      const Real position = location * size[axis] - Real(0.5);
      const bool near = position > -1 && position < size[axis];  // NaN is not
      inside = inside && near;
      low[axis] = near ? static_cast<int>(floor(position)) : 0;
      fraction[axis] = near ? position - low[axis] : 0;
    }
  }

  // Bit `corner` is set if that corner is inside.
  __device__ unsigned corners_inside() const {
    unsigned mask = inside ? (1 << kCorners) - 1 : 0;
    // Bits of the corners at lower x, y and t.
    constexpr unsigned at_lower[kAxes] = {0x55, 0x33, 0x0f};
#pragma unroll
    for (int axis = 0; axis < kAxes; ++axis) {
      if (low[axis] < 0) mask &= ~at_lower[axis];
      if (low[axis] + 1 >= size[axis]) mask &= at_lower[axis];
    }
    return mask;
  }

  // Number of the corner's cell, or of the nearest cell inside; of no use if no corner is inside.
  __device__ int cell(const Levels& levels, int corner) const {
    int nearest[kAxes];
#pragma unroll
    for (int axis = 0; axis < kAxes; ++axis) {
      const int index = low[axis] + (corner >> axis & 1);
      nearest[axis] = min(max(index, 0), size[axis] - 1);
    }
    return first_cell(levels) + (nearest[2] * size[1] + nearest[1]) * size[0] + nearest[0];
  }

  // Interpolation weight of a corner.
  __device__ Real weight(int corner) const {
    Real product = 1;
#pragma unroll
    for (int axis = 0; axis < kAxes; ++axis) product *= corner >> axis & 1 ? fraction[axis] : 1 - fraction[axis];
    return product;
  }

 private:
  __device__ int first_cell(const Levels& levels) const {
    int first = 0;
#pragma unroll
    for (int before = 0; before < NUM_LEVELS; ++before) {
      const int* shape = levels.shape[before];
      if (before < level) first += shape[0] * shape[1] * shape[2];
    }
    return first;
  }
};

// Samples as the lanes of a group leave them for each other; corner c is `of[c % 4]` of half c / 4.
template <int kWidth>
struct Corners {
  Four<int> cells[2][kWidth];
  Four<Real> weights[2][kWidth];
  Four<Real> fractions[kWidth];
  unsigned inside[kWidth];  // see Sample::corners_inside

  __device__ void write(int lane, const Levels& levels, const Sample& sample, Real attention) {
    const unsigned mask = sample.corners_inside();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Four<int> four_cells;
      Four<Real> four_weights;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int corner = 4 * half + i;
        four_cells.of[i] = sample.cell(levels, corner);
        four_weights.of[i] = mask >> corner & 1 ? attention * sample.weight(corner) : Real(0);
      }
      cells[half][lane] = four_cells;
      weights[half][lane] = four_weights;
    }
    fractions[lane] = {sample.fraction[0], sample.fraction[1], sample.fraction[2], 0};
    inside[lane] = mask;
  }
};

// The channels of one lane.
struct Channels {
  int lane;

  __device__ bool has(int turn) const { return kVectors % LANES == 0 || turn * LANES + lane < kVectors; }
  __device__ int first() const { return lane * VECTOR; }
  static __device__ constexpr int of(int turn) { return turn * LANES * VECTOR; }
};

// Which query a group works on, and whether it is one: the last block may reach past the end.
struct Place {
  int lane, group;
  bool active;
  long long slice, query;

  __device__ explicit Place(const Problem& problem)
      : lane(threadIdx.x % LANES), group(threadIdx.x / LANES) {
    const long long blocks_per_slice = (problem.num_queries + kGroups - 1) / kGroups;
    slice = blockIdx.x / blocks_per_slice;
    query = blockIdx.x % blocks_per_slice * kGroups + group;
    active = query < problem.num_queries;
    if (!active) query = 0;
  }

  // Index of this lane's sample, past the last one if there is none.
  __device__ int sample(int first) const { return active && first + lane < kSamples ? first + lane : kSamples; }
};

extern "C" __global__ void __launch_bounds__(THREADS)
    forward(const __grid_constant__ Problem problem, const __grid_constant__ Levels levels) {
  __shared__ Corners<LANES> shared[kGroups];
  const Place place(problem);
  const Query query(problem, place.slice, place.query);
  const Attention<LANES> attention(problem, query, place.lane);
  const Channels channels{place.lane};
  Corners<LANES>& corners = shared[place.group];
  const Value* const value = problem.value + query.value + channels.first();
  Real sums[kTurns][VECTOR] = {};

#pragma unroll 1
  for (int first = 0; first < kSamples; first += LANES) {
    const int own = place.sample(first);
    __syncwarp();
    corners.write(place.lane, levels, Sample(problem, levels, query, own), attention(own));
    __syncwarp();
#pragma unroll 1
    for (int sample = 0; sample < LANES; ++sample) {
      if (corners.inside[sample] == 0) continue;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const Four<int> cells = corners.cells[half][sample];
        const Four<Real> weights = corners.weights[half][sample];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const Value* row = value + cells.of[i] * kCellStride;
#pragma unroll
          for (int turn = 0; turn < kTurns; ++turn) {
            if (!channels.has(turn)) continue;
            Real vector[VECTOR];
            load(row + channels.of(turn), vector);
#pragma unroll
            for (int c = 0; c < VECTOR; ++c) sums[turn][c] += weights.of[i] * vector[c];
          }
        }
      }
    }
  }
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn) {
    if (place.active && channels.has(turn)) {
      store(problem.output + query.in_heads * HEAD_DIM + channels.first() + channels.of(turn), sums[turn]);
    }
  }
}

// Slopes along x, y and t and the value itself of what is interpolated between eight corners.
__device__ inline Four<Real> differentiate(const Real (&corners)[kCorners], const Four<Real>& fractions) {
  const Real x = fractions.of[0], y = fractions.of[1], t = fractions.of[2];
  Real in_row[4], slope_x_in_row[4], in_plane[2], slope_x_in_plane[2], slope_y_in_plane[2];
#pragma unroll
  for (int row = 0; row < 4; ++row) {
    slope_x_in_row[row] = corners[2 * row + 1] - corners[2 * row];
    in_row[row] = corners[2 * row] + x * slope_x_in_row[row];
  }
#pragma unroll
  for (int plane = 0; plane < 2; ++plane) {
    const int row = 2 * plane;
    slope_y_in_plane[plane] = in_row[row + 1] - in_row[row];
    in_plane[plane] = in_row[row] + y * slope_y_in_plane[plane];
    slope_x_in_plane[plane] = slope_x_in_row[row] + y * (slope_x_in_row[row + 1] - slope_x_in_row[row]);
  }
  const Real slope_t = in_plane[1] - in_plane[0];
  return {slope_x_in_plane[0] + t * (slope_x_in_plane[1] - slope_x_in_plane[0]),
          slope_y_in_plane[0] + t * (slope_y_in_plane[1] - slope_y_in_plane[0]), slope_t, in_plane[0] + t * slope_t};
}

// All gradients. That by value needs zeros to start from, and is a sum in no particular order.
extern "C" __global__ void __launch_bounds__(THREADS)
    backward(const __grid_constant__ Problem problem, const __grid_constant__ Levels levels) {
  __shared__ Corners<LANES> shared[kGroups];
  const Place place(problem);
  const Query query(problem, place.slice, place.query);
  const Attention<LANES> attention(problem, query, place.lane);
  const Channels channels{place.lane};
  Corners<LANES>& corners = shared[place.group];
  const Value* const value = problem.value + query.value + channels.first();
  Real* const grad_value =
      problem.grad_value == nullptr ? nullptr : problem.grad_value + query.value + channels.first();
  Real grad_output[kTurns][VECTOR] = {};
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn) {
    if (!channels.has(turn)) continue;
    load(problem.grad_output + query.in_heads * HEAD_DIM + channels.first() + channels.of(turn), grad_output[turn]);
  }

  Real mean = 0;  // of the gradients by the attention weights, weighted by these
#pragma unroll 1
  for (int first = 0; first < kSamples; first += LANES) {
    const int own = place.sample(first);
    const Sample own_sample(problem, levels, query, own);
    const Real own_attention = attention(own);
    Four<Real> own_slopes = {};
    __syncwarp();
    corners.write(place.lane, levels, own_sample, own_attention);
    __syncwarp();
#pragma unroll 1
    for (int sample = 0; sample < LANES; ++sample) {
      const unsigned inside = corners.inside[sample];
      Real products[kCorners] = {};
      if (inside != 0) {
#pragma unroll
        for (int turn = 0; turn < kTurns; ++turn) {
          if (!channels.has(turn)) continue;
#pragma unroll
          for (int corner = 0; corner < kCorners; ++corner) {
            const int cell = corners.cells[corner / 4][sample].of[corner % 4];
            const long long row = cell * kCellStride + channels.of(turn);
            if (problem.grad_samples != nullptr) {
              Real vector[VECTOR], product = 0;
              load(value + row, vector);
#pragma unroll
              for (int c = 0; c < VECTOR; ++c) product += grad_output[turn][c] * vector[c];
              if (inside >> corner & 1) products[corner] += product;
            }
            if (grad_value != nullptr && inside >> corner & 1) {
              const Real weight = corners.weights[corner / 4][sample].of[corner % 4];
              Real part[VECTOR];
#pragma unroll
              for (int c = 0; c < VECTOR; ++c) part[c] = weight * grad_output[turn][c];
              add(grad_value + row, part);
            }
          }
        }
      }
      if (problem.grad_samples == nullptr) continue;
      const Four<Real> slopes = differentiate(products, corners.fractions[sample]);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const Real slope = sum_over_lanes<LANES>(slopes.of[i]);
        if (place.lane == sample) own_slopes.of[i] = slope;
      }
    }
    if (problem.grad_samples == nullptr || own == kSamples) continue;
    const long long index = query.in_heads * kSamples + own;
#pragma unroll
    for (int axis = 0; axis < kAxes; ++axis) {
      problem.grad_samples[index * kAxes + axis] = own_attention * own_sample.size[axis] * own_slopes.of[axis];
    }
    problem.grad_weights[index] = own_slopes.of[3];
    mean += own_attention * own_slopes.of[3];
  }
  if (!FUSED || problem.grad_samples == nullptr) return;
  mean = sum_over_lanes<LANES>(mean);
  if (!place.active) return;
  for (int own = place.lane; own < kSamples; own += LANES) {
    Real& grad_logit = problem.grad_weights[query.in_heads * kSamples + own];
    grad_logit = attention(own) * (grad_logit - mean);
  }
}

// The gradient by value alone, always summed in the same order: a warp owns a level of a head and goes through all
// queries. Much slower than `backward`, for those who ask for determinism.
extern "C" __global__ void __launch_bounds__(THREADS)
    backward_value_in_order(const __grid_constant__ Problem problem, const __grid_constant__ Levels levels) {
  __shared__ Corners<kWarp> shared[THREADS / kWarp];
  const int lane = threadIdx.x % kWarp;
  const long long warp = (blockIdx.x * static_cast<long long>(THREADS) + threadIdx.x) / kWarp;
  if (warp >= problem.num_slices * NUM_LEVELS) return;
  const int level = warp % NUM_LEVELS;
  Corners<kWarp>& corners = shared[threadIdx.x / kWarp];

#pragma unroll 1
  for (long long index = 0; index < problem.num_queries; ++index) {
    const Query query(problem, warp / NUM_LEVELS, index);
    const Attention<kWarp> attention(problem, query, lane);
#pragma unroll 1
    for (int first = 0; first < NUM_POINTS; first += kWarp) {
      const int own = first + lane < NUM_POINTS ? level * NUM_POINTS + first + lane : kSamples;
      __syncwarp();
      corners.write(lane, levels, Sample(problem, levels, query, own), attention(own));
      __syncwarp();
#pragma unroll 1
      for (int sample = 0; sample < kWarp; ++sample) {
        const unsigned inside = corners.inside[sample];
        for (int channel = lane; inside != 0 && channel < HEAD_DIM; channel += kWarp) {
          const Real grad_output = to_real(problem.grad_output[query.in_heads * HEAD_DIM + channel]);
          Real* const column = problem.grad_value + query.value + channel;
          // The corners inside are cells of their own: all can be read before any is written.
          Real sums[kCorners];
#pragma unroll
          for (int corner = 0; corner < kCorners; ++corner) {
            const long long cell = corners.cells[corner / 4][sample].of[corner % 4];
            if (inside >> corner & 1) sums[corner] = column[cell * kCellStride];
          }
#pragma unroll
          for (int corner = 0; corner < kCorners; ++corner) {
            const long long cell = corners.cells[corner / 4][sample].of[corner % 4];
            const Real weight = corners.weights[corner / 4][sample].of[corner % 4];
            if (inside >> corner & 1) {
              column[cell * kCellStride] = sums[corner] + weight * grad_output;
            }
          }
        }
      }
    }
  }
}
