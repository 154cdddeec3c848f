// 3-D deformable attention the straightforward way, to compare with: a thread per channel, as in the kernels that most
// deformable detectors come with, which read locations and attention weights from memory. float32 only.
//
// Compiled with THREADS, of a block; each thread adds its part of the gradients by atomic additions.

struct Problem {
  const float *value, *locations, *weights, *grad_output;
  float *output, *grad_value, *grad_locations, *grad_weights;
  const int* shapes;  // (t, h, w) of each level
  long long count;    // of channels of all heads, queries and batch elements
  int num_cells, num_queries, num_heads, head_dim, num_levels, num_points;
};

constexpr int kAxes = 3;
constexpr int kCorners = 8;

struct Thread {
  bool active;
  long long index, head_of_query, batch;
  int head, channel;

  __device__ explicit Thread(const Problem& p) {
    index = blockIdx.x * static_cast<long long>(THREADS) + threadIdx.x;
    active = index < p.count;
    head_of_query = index / p.head_dim;
    channel = index % p.head_dim;
    head = head_of_query % p.num_heads;
    batch = head_of_query / p.num_heads / p.num_queries;
  }
};

// The lower corner of a sample and how far it is from there to the higher one.
struct Place {
  int size[kAxes], low[kAxes];
  float fraction[kAxes];
  bool inside = true;

  __device__ Place(const float* location, const int* shape) {
    for (int axis = 0; axis < kAxes; ++axis) {
      size[axis] = shape[kAxes - 1 - axis];
      const float position = location[axis] * size[axis] - 0.5f;
      inside = inside && position > -1 && position < size[axis];
      low[axis] = inside ? static_cast<int>(floor(position)) : 0;
      fraction[axis] = position - low[axis];
    }
  }

  // Number of the cell in its level, or -1 if it lies outside.
  __device__ int cell(int corner) const {
    int cell = 0;
    for (int axis = kAxes - 1; axis >= 0; --axis) {
      const int index = low[axis] + (corner >> axis & 1);
      if (index < 0 || index >= size[axis]) return -1;
      cell = cell * size[axis] + index;
    }
    return cell;
  }

  // Interpolation weight of a corner, or its slope along an axis.
  __device__ float weight(int corner, int slope_axis = -1) const {
    float product = 1;
    for (int axis = 0; axis < kAxes; ++axis) {
      const bool high = corner >> axis & 1;
      if (axis == slope_axis) {
        product *= high ? size[axis] : -size[axis];
      } else {
        product *= high ? fraction[axis] : 1 - fraction[axis];
      }
    }
    return product;
  }
};

extern "C" __global__ void __launch_bounds__(THREADS) im2col_forward(const __grid_constant__ Problem p) {
  const Thread thread(p);
  if (!thread.active) return;
  float sum = 0;
  long long first_cell = thread.batch * p.num_cells;
  for (int level = 0; level < p.num_levels; ++level) {
    const int* shape = p.shapes + kAxes * level;
    for (int point = 0; point < p.num_points; ++point) {
      const long long sample = (thread.head_of_query * p.num_levels + level) * p.num_points + point;
      const Place place(p.locations + kAxes * sample, shape);
      if (!place.inside) continue;
      float sampled = 0;
      for (int corner = 0; corner < kCorners; ++corner) {
        const int cell = place.cell(corner);
        if (cell < 0) continue;
        const long long row = (first_cell + cell) * p.num_heads + thread.head;
        sampled += place.weight(corner) * p.value[row * p.head_dim + thread.channel];
      }
      sum += p.weights[sample] * sampled;
    }
    first_cell += static_cast<long long>(shape[0]) * shape[1] * shape[2];
  }
  p.output[thread.index] = sum;
}

extern "C" __global__ void __launch_bounds__(THREADS) im2col_backward(const __grid_constant__ Problem p) {
  const Thread thread(p);
  if (!thread.active) return;
  const float grad_output = p.grad_output[thread.index];
  long long first_cell = thread.batch * p.num_cells;
  for (int level = 0; level < p.num_levels; ++level) {
    const int* shape = p.shapes + kAxes * level;
    for (int point = 0; point < p.num_points; ++point) {
      const long long sample = (thread.head_of_query * p.num_levels + level) * p.num_points + point;
      const Place place(p.locations + kAxes * sample, shape);
      if (!place.inside) continue;
      const float attention = p.weights[sample];
      float sampled = 0, slopes[kAxes] = {};
      for (int corner = 0; corner < kCorners; ++corner) {
        const int cell = place.cell(corner);
        if (cell < 0) continue;
        const long long index = ((first_cell + cell) * p.num_heads + thread.head) * p.head_dim + thread.channel;
        const float value = p.value[index], weight = place.weight(corner);
        sampled += weight * value;
        for (int axis = 0; axis < kAxes; ++axis) slopes[axis] += place.weight(corner, axis) * value;
        atomicAdd(p.grad_value + index, attention * weight * grad_output);
      }
      for (int axis = 0; axis < kAxes; ++axis) {
        atomicAdd(p.grad_locations + kAxes * sample + axis, attention * slopes[axis] * grad_output);
      }
      atomicAdd(p.grad_weights + sample, sampled * grad_output);
    }
    first_cell += static_cast<long long>(shape[0]) * shape[1] * shape[2];
  }
}
