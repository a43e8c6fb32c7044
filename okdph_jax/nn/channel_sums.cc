// The two sums of each channel that batch normalisation needs, as an XLA FFI handler: from float32
// a and x [*S, *B, C] and center [*S, C], the sums over B of a and of a (x - center), [*S, 2, C].
// One pass reads both tensors, on the calling thread.
#include <algorithm>
#include <cstdint>
#include <exception>
#include <numeric>
#include <string>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;
using Buffer = ffi::Buffer<ffi::F32>;

// Numbers that registers hold while rows are added, and rows until float32 sums become double.
constexpr int64_t kLanes = 64, kRows = 64, kMost = 1024;
typedef float Vector __attribute__((vector_size(64), aligned(4)));  // 16 floats, unaligned

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EACH_CPU __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_EACH_CPU
#endif

// Adds `rows` rows of kLanes numbers.
FOR_EACH_CPU void add_narrow(const float* a, const float* x, const float* center, int64_t rows,
                             float* first, float* second) {
  const Vector* va = reinterpret_cast<const Vector*>(a);
  const Vector* vx = reinterpret_cast<const Vector*>(x);
  const Vector* vc = reinterpret_cast<const Vector*>(center);
  const Vector c0 = vc[0], c1 = vc[1], c2 = vc[2], c3 = vc[3];
  Vector f0{}, f1{}, f2{}, f3{}, s0{}, s1{}, s2{}, s3{};
  for (int64_t row = 0; row < rows; ++row, va += 4, vx += 4) {
    f0 += va[0];
    f1 += va[1];
    f2 += va[2];
    f3 += va[3];
    s0 += va[0] * (vx[0] - c0);
    s1 += va[1] * (vx[1] - c1);
    s2 += va[2] * (vx[2] - c2);
    s3 += va[3] * (vx[3] - c3);
  }
  Vector* vf = reinterpret_cast<Vector*>(first);
  Vector* vs = reinterpret_cast<Vector*>(second);
  vf[0] = f0, vf[1] = f1, vf[2] = f2, vf[3] = f3;
  vs[0] = s0, vs[1] = s1, vs[2] = s2, vs[3] = s3;
}

// Adds `rows` rows of any width.
FOR_EACH_CPU void add_wide(const float* a, const float* x, const float* center, int64_t rows,
                           int64_t width, float* first, float* second) {
  std::fill(first, first + width, 0.0f);
  std::fill(second, second + width, 0.0f);
  for (int64_t row = 0; row < rows; ++row, a += width, x += width) {
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) {
      first[i] += a[i];
      second[i] += a[i] * (x[i] - center[i]);
    }
  }
}

void sum(const float* a, const float* x, const float* center, int64_t count, int64_t channels,
         float* sums) {
  // Few channels: several rows side by side, until they fill registers.
  int64_t abreast = kLanes / std::gcd(channels, kLanes);
  if (abreast * channels > kMost) abreast = 1;
  const int64_t width = abreast * channels;
  std::vector<float> centers(width), first(width), second(width);
  for (int64_t i = 0; i < width; ++i) centers[i] = center[i % channels];
  std::vector<double> total(2 * channels);
  for (int64_t done = 0; done < count;) {
    const int64_t rows = std::min((count - done) / abreast, kRows);
    const int64_t taken = rows ? rows * abreast : 1;  // the last ones one by one
    const float *from_a = a + done * channels, *from_x = x + done * channels;
    const int64_t lanes = rows ? width : channels;
    if (lanes == kLanes) {
      add_narrow(from_a, from_x, centers.data(), std::max<int64_t>(rows, 1), first.data(),
                 second.data());
    } else {
      add_wide(from_a, from_x, centers.data(), std::max<int64_t>(rows, 1), lanes, first.data(),
               second.data());
    }
    for (int64_t i = 0; i < lanes; i += channels) {
      for (int64_t c = 0; c < channels; ++c) {
        total[c] += first[i + c];
        total[channels + c] += second[i + c];
      }
    }
    done += taken;
  }
  std::copy(total.begin(), total.end(), sums);
}

ffi::Error channel_sums(Buffer a, Buffer x, Buffer center, ffi::Result<Buffer> sums) try {
  const int64_t channels = center.dimensions().back();
  const int64_t stack = center.element_count() / channels;
  const int64_t size = x.element_count() / stack;
  for (int64_t n = 0; n < stack; ++n) {
    sum(a.typed_data() + n * size, x.typed_data() + n * size,
        center.typed_data() + n * channels, size / channels, channels,
        sums->typed_data() + n * 2 * channels);
  }
  return ffi::Error::Success();
} catch (const std::exception& error) {
  return ffi::Error::Internal(std::string("sums of channels: ") + error.what());
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(okdph_channel_sums, channel_sums,
                              ffi::Ffi::Bind().Arg<Buffer>().Arg<Buffer>().Arg<Buffer>().Ret<Buffer>());
