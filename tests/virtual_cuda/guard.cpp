// Lets PyTorch, a CPU build or a CUDA build without a device, believe in one CUDA device: a device guard and hooks that
// do nothing. Tensors of that device hold no CUDA memory; see tensors.py.
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {
using namespace c10;
constexpr auto CUDA = DeviceType::CUDA;

Stream only_stream() { return Stream(Stream::DEFAULT, Device(CUDA, 0)); }

struct Guard : impl::NoOpDeviceGuardImpl<CUDA> {
  DeviceIndex deviceCount() const noexcept override { return 1; }
  Device exchangeDevice(Device) const override { return Device(CUDA, 0); }
  Device getDevice() const override { return Device(CUDA, 0); }
  Stream getStream(Device) const noexcept override { return only_stream(); }
  Stream getNewStream(Device, int) const override { return only_stream(); }
  Stream exchangeStream(Stream) const noexcept override { return only_stream(); }
  void record(void**, const Stream&, const DeviceIndex, const EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
};

struct Hooks : at::CUDAHooksInterface {
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  int getNumGPUs() const override { return 1; }
};
}  // namespace

extern "C" void install() {
  // PyTorch made its hooks at import and keeps them: that object gets the methods of ours. (Registering the guard alone,
  // as torch._C._ensureCUDADeviceGuardSet does, is not enough: autograd asks the hooks.)
  *(void**)&at::detail::getCUDAHooks() = *(void**)new Hooks();
  impl::device_guard_impl_registry[(size_t)CUDA].store(new Guard());
}
