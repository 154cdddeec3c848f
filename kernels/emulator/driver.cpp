// Stands in for the CUDA driver, libcuda.so.1, in tests: what of its interface the Python code calls, and nothing more:
// NVRTC, which looks for a driver in the process, takes one with cuInit for whole.
//
// A kernel that is launched runs at once, on the CPU, by the emulator. What the driver is given is what a real one
// would get: the machine code of the kernels, their names, the sizes of grid and block, a stream and the arguments.

#include <dlfcn.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace {

// Of the real driver.
enum Result { kSuccess = 0, kInvalidValue = 1, kInvalidContext = 201, kNoBinaryForGpu = 209, kNotFound = 500 };

struct Image {
  std::string code;
  void* library;  // the same kernels for the CPU
};

std::vector<Image> images;

// There is one GPU with one context, which no thread has until it sets it.
char primary_context;
thread_local void* current_context = nullptr;

}  // namespace

using Kernel = void(const void* problem, const void* levels, unsigned num_blocks, bool backwards);

extern "C" {

// The last launch, for tests to look at.
struct Launch {
  int64_t count, num_blocks, num_threads;
  void* stream;
} last_launch;

// From now on, kernels loaded from this machine code run those of an emulating library.
int register_kernels(const char* code, std::size_t size, const char* library) {
  images.push_back({std::string(code, size), dlopen(library, RTLD_NOW | RTLD_LOCAL)});
  return images.back().library != nullptr;
}

int cuDeviceGet(int* device, int ordinal) {
  *device = ordinal;
  return ordinal == 0 ? kSuccess : kInvalidValue;
}

int cuDevicePrimaryCtxRetain(void** context, int device) {
  *context = &primary_context;
  return device == 0 ? kSuccess : kInvalidValue;
}

int cuCtxSetCurrent(void* context) {
  current_context = context;
  return kSuccess;
}

int cuModuleLoadData(void** module, const void* code) {
  if (current_context != &primary_context) return kInvalidContext;
  for (const Image& image : images) {
    if (std::memcmp(code, image.code.data(), image.code.size()) == 0) {
      *module = image.library;
      return kSuccess;
    }
  }
  return kNoBinaryForGpu;
}

int cuModuleGetFunction(void** function, void* module, const char* name) {
  *function = dlsym(module, (std::string("emulate_") + name).c_str());
  return *function == nullptr ? kNotFound : kSuccess;
}

int cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                   unsigned block_y, unsigned block_z, unsigned shared_bytes, void* stream, void** arguments,
                   void** extra) {
  if (current_context != &primary_context) return kInvalidContext;
  // No block at all, or dimensions and memory that the kernels know nothing of.
  if (grid_x == 0 || (grid_y & grid_z & block_y & block_z) != 1 || shared_bytes != 0 || extra != nullptr) {
    return kInvalidValue;
  }
  last_launch = {last_launch.count + 1, grid_x, block_x, stream};
  reinterpret_cast<Kernel*>(function)(arguments[0], arguments[1], grid_x, false);
  return kSuccess;
}

int cuGetProcAddress_v2(const char* name, void** function, int, uint64_t, int* status) {
  Dl_info self;
  dladdr(reinterpret_cast<void*>(&cuModuleLoadData), &self);
  *function = dlsym(dlopen(self.dli_fname, RTLD_NOW | RTLD_NOLOAD), name);
  if (status != nullptr) *status = *function == nullptr;
  return *function == nullptr ? kNotFound : kSuccess;
}

}  // extern "C"
