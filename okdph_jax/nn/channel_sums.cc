// The two sums of each channel that batch normalisation needs, as an XLA FFI handler: from float32
// a and x [*S, *B, C] and center [*S, C], the sums over B of a and of a (x - center), [*S, 2, C].
// One pass reads both tensors.
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
                             int64_t, float* first, float* second) {
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

// Adds the sums of `count` pixels to `total`, [2, C].
void add(const float* a, const float* x, const float* center, int64_t count, int64_t channels,
         double* total) {
  // Few channels: several pixels side by side, until they fill registers.
  int64_t abreast = kLanes / std::gcd(channels, kLanes);
  if (abreast * channels > kMost) abreast = 1;
  const int64_t width = abreast * channels;
  std::vector<float> centers(width), first(width), second(width);
  for (int64_t i = 0; i < width; ++i) centers[i] = center[i % channels];
  while (count > 0) {
    const bool full = count >= abreast;  // the last pixels are added one by one
    const int64_t rows = full ? std::min(count / abreast, kRows) : 1;
    const int64_t lanes = full ? width : channels;
    const auto add_rows = lanes == kLanes ? add_narrow : add_wide;
    add_rows(a, x, centers.data(), rows, lanes, first.data(), second.data());
    for (int64_t i = 0; i < lanes; i += channels) {
      for (int64_t c = 0; c < channels; ++c) {
        total[c] += first[i + c];
        total[channels + c] += second[i + c];
      }
    }
    a += rows * lanes;
    x += rows * lanes;
    count -= rows * lanes / channels;
  }
}

ffi::Error channel_sums(Buffer a, Buffer x, Buffer center, ffi::Result<Buffer> sums,
                        int64_t threads) try {
  const int64_t channels = center.dimensions().back();
  const int64_t stack = center.element_count() / channels;
  const int64_t count = x.element_count() / stack / channels;
  for (int64_t n = 0; n < stack; ++n) {
    std::vector<double> parts(threads * 2 * channels);
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int64_t t = 0; t < threads; ++t) {
      const int64_t from = count * t / threads, to = count * (t + 1) / threads;
      const int64_t at = (n * count + from) * channels;
      add(a.typed_data() + at, x.typed_data() + at, center.typed_data() + n * channels, to - from,
          channels, parts.data() + t * 2 * channels);
    }
    float* const out = sums->typed_data() + n * 2 * channels;
    for (int64_t i = 0; i < 2 * channels; ++i) {
      double total = 0;
      for (int64_t t = 0; t < threads; ++t) total += parts[t * 2 * channels + i];
      out[i] = static_cast<float>(total);
    }
  }
  return ffi::Error::Success();
} catch (const std::exception& error) {
  return ffi::Error::Internal(std::string("sums of channels: ") + error.what());
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(okdph_channel_sums, channel_sums,
                              ffi::Ffi::Bind()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Ret<Buffer>()
                                  .Attr<int64_t>("threads"));
