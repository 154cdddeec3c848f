// Runs CUDA kernels on the CPU, for tests: what of the language the kernels here use, and nothing more.
//
// Each thread of a block is a fiber, and the blocks run one after the other. A fiber runs until the lanes of its warp
// have to meet; then the next one does. Lanes that meet at different lines, or wait for a lane that has ended, abort
// the process: on a GPU either is undefined. So is reading what another lane writes without meeting it in between;
// with the fibers in the opposite order, the result of that differs.

#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <type_traits>
#include <vector>

#define __device__
#define __global__
#define __grid_constant__
#define __launch_bounds__(threads)
#define __shared__ static

struct uint2 {
  unsigned x, y;
};
struct uint4 {
  unsigned x, y, z, w;
};
struct float4 {
  float x, y, z, w;
};
struct Index {
  unsigned x;
};

inline Index threadIdx, blockIdx;

using std::exp;
using std::floor;

inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

template <typename To, typename From>
To emulated_bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

inline unsigned __float_as_uint(float x) { return emulated_bit_cast<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return emulated_bit_cast<float>(x); }
inline float emulated_half_to_float(unsigned short bits) { return emulated_bit_cast<_Float16>(bits); }
inline unsigned short emulated_float_to_half(float x) {
  return emulated_bit_cast<unsigned short>(static_cast<_Float16>(x));
}

// Blocks and threads do not run at the same time here.
template <typename T>
void atomicAdd(T* to, std::common_type_t<T> x) {
  *to += x;
}

namespace emulated {

constexpr int kWarp = 32;
constexpr std::size_t kStackBytes = 256 << 10;

[[noreturn]] inline void fail(const char* message) {
  std::fprintf(stderr, "CUDA emulator: thread %u of block %u: %s\n", threadIdx.x, blockIdx.x, message);
  std::abort();
}

struct Warp {
  int arrived = 0;
  unsigned long meetings = 0;
  int line = 0;  // of the program, where the lanes that have arrived meet
  uint64_t exchanged[kWarp];
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  bool ended;
};

class Block {
 public:
  // Runs `body` in each thread; `backwards` starts with the last one.
  void run(unsigned num_threads, bool backwards, const std::function<void()>& body) {
    fibers_.resize(num_threads);
    warps_.assign(num_threads / kWarp, Warp());
    body_ = &body;
    num_ended_ = 0;
    for (Fiber& fiber : fibers_) start(fiber);
    while (num_ended_ < num_threads) {
      const unsigned progress = progress_;
      for (unsigned i = 0; i < num_threads; ++i) {
        threadIdx.x = backwards ? num_threads - 1 - i : i;
        if (!fibers_[threadIdx.x].ended) swapcontext(&scheduler_, &fibers_[threadIdx.x].context);
      }
      if (progress == progress_) fail("waits for a lane that has ended");
    }
  }

  // Returns when all lanes of the warp have come here, to the same line of the program.
  void meet(int line) {
    Warp& mine = warp();
    if (mine.arrived == 0) mine.line = line;
    if (mine.line != line) fail("does not meet the other lanes of its warp");
    const unsigned long meeting = mine.meetings;
    if (++mine.arrived == kWarp) {
      mine.arrived = 0;
      ++mine.meetings;
      ++progress_;
    }
    while (mine.meetings == meeting) yield();
  }

  template <typename T>
  T exchange(int line, T x, int with_lane) {
    std::memcpy(&warp().exchanged[threadIdx.x % kWarp], &x, sizeof x);
    meet(line);
    std::memcpy(&x, &warp().exchanged[with_lane], sizeof x);
    meet(line);
    return x;
  }

 private:
  std::vector<Fiber> fibers_;
  std::vector<Warp> warps_;
  ucontext_t scheduler_;
  const std::function<void()>* body_;
  unsigned num_ended_, progress_ = 0;

  Warp& warp() { return warps_[threadIdx.x / kWarp]; }

  void yield() {
    const unsigned thread = threadIdx.x;
    swapcontext(&fibers_[thread].context, &scheduler_);
    threadIdx.x = thread;
  }

  void start(Fiber& fiber);
  static void enter();
};

inline Block block;

inline void Block::enter() {
  (*block.body_)();
  block.fibers_[threadIdx.x].ended = true;
  ++block.num_ended_;
  ++block.progress_;
}

inline void Block::start(Fiber& fiber) {
  fiber.ended = false;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = &scheduler_;
  makecontext(&fiber.context, &Block::enter, 0);
}

// Runs `body` in each thread of each block, or of those from `first_block` on.
inline void launch(unsigned num_blocks, unsigned num_threads, bool backwards, const std::function<void()>& body,
                   unsigned first_block = 0) {
  for (blockIdx.x = first_block; blockIdx.x < num_blocks; ++blockIdx.x) block.run(num_threads, backwards, body);
}

}  // namespace emulated

#define __syncwarp() emulated::block.meet(__LINE__)
#define __shfl_xor_sync(mask, x, lane_mask, width) \
  emulated::block.exchange(__LINE__, x, static_cast<int>(threadIdx.x % emulated::kWarp ^ (lane_mask)))
