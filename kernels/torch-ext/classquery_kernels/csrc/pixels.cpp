// Hue, saturation and value of 8-bit frames, in one pass over the memory.
//
// A block of pixels at a time is spread into three rows of floats that stay in the first cache; the loop over them is
// plain, so that compilers turn it into vectors. The arithmetic is that of `shift_hsv` in plain PyTorch.

#include <algorithm>
#include <cmath>
#include <cstdint>

extern "C" {

// Mirrored by `_Frames` in pixels.py. Strides are in bytes, which are elements.
struct Frames {
  const uint8_t* input;
  uint8_t* output;  // contiguous: num_frames, 3, height, width
  int64_t num_frames, height, width;
  int64_t frame_stride, channel_stride, row_stride, column_stride;
  float hue;  // in turns
  float saturation;
  float value;  // in levels
};

}  // extern "C"

namespace {

constexpr int64_t kBlock = 512;

inline float clamp(float number, float low, float high) { return std::min(std::max(number, low), high); }

inline void spread(const uint8_t* from, int64_t stride, int64_t count, float* to) {
  if (stride == 1) {
    for (int64_t i = 0; i < count; ++i) to[i] = from[i];
  } else if (stride == 3) {
    for (int64_t i = 0; i < count; ++i) to[i] = from[3 * i];
  } else {
    for (int64_t i = 0; i < count; ++i) to[i] = from[stride * i];
  }
}

// Up to one sextant from its own hue a channel has the value, from two sextants on it lies below by the chroma.
inline uint8_t level(float value, float chroma, float distance) {
  return static_cast<uint8_t>(value - chroma * clamp(distance, 0.0f, 1.0f) + 0.5f);
}

void shift_block(const Frames& frames, const float* red, const float* green, const float* blue, int64_t count,
                 uint8_t* __restrict__ new_red, uint8_t* __restrict__ new_green, uint8_t* __restrict__ new_blue) {
  const float hue = frames.hue, saturation = frames.saturation, value = frames.value;
  for (int64_t i = 0; i < count; ++i) {
    const float r = red[i], g = green[i], b = blue[i];
    const float brightest = std::max(std::max(r, g), b);
    const float chroma = brightest - std::min(std::min(r, g), b);
    const float inverse = 1.0f / std::max(chroma, 1.0f);
    // The hue in sextants: 0 is red, 2 green, 4 blue.
    const float of_blue = (r - g) * inverse + 4.0f;
    const float of_green = (b - r) * inverse + 2.0f;
    const float of_red = (g - b) * inverse;
    const float old_sextant = brightest == r ? of_red : brightest == g ? of_green : of_blue;
    const float turns = old_sextant * (1.0f / 6.0f) + hue;
    const float sextant = 6.0f * (turns - std::floor(turns));
    const float new_value = clamp(brightest + value, 0.0f, 255.0f);
    // Grey has no hue and stays grey.
    const float new_saturation = clamp(chroma / std::max(brightest, 1.0f) + saturation, 0.0f, 1.0f);
    const float new_chroma = chroma > 0.0f ? new_value * new_saturation : 0.0f;
    new_red[i] = level(new_value, new_chroma, 2.0f - std::fabs(sextant - 3.0f));
    new_green[i] = level(new_value, new_chroma, std::fabs(sextant - 2.0f) - 1.0f);
    new_blue[i] = level(new_value, new_chroma, std::fabs(sextant - 4.0f) - 1.0f);
  }
}

}  // namespace

extern "C" __attribute__((visibility("default"))) void shift_hsv(const Frames* pointer) {
  const Frames& frames = *pointer;
  const int64_t plane = frames.height * frames.width;
  float red[kBlock], green[kBlock], blue[kBlock];
  for (int64_t frame = 0; frame < frames.num_frames; ++frame) {
    for (int64_t row = 0; row < frames.height; ++row) {
      const uint8_t* from = frames.input + frame * frames.frame_stride + row * frames.row_stride;
      uint8_t* to = frames.output + frame * 3 * plane + row * frames.width;
      for (int64_t start = 0; start < frames.width; start += kBlock) {
        const int64_t count = std::min(kBlock, frames.width - start);
        const uint8_t* first = from + start * frames.column_stride;
        spread(first, frames.column_stride, count, red);
        spread(first + frames.channel_stride, frames.column_stride, count, green);
        spread(first + 2 * frames.channel_stride, frames.column_stride, count, blue);
        shift_block(frames, red, green, blue, count, to + start, to + plane + start, to + 2 * plane + start);
      }
    }
  }
}
