// Which clock the SMs really had, and a kernel that takes as long as it is told.
//
//   hertz = (clock64 later - clock64 earlier) / (globaltimer later - globaltimer earlier), both read on the same SM
//
//   stream   ... | mark slot 0 | spin | work ................ | mark slot 1 | ...
//   stamps   [slot][SM] = {globaltimer in ns, clock64 in cycles}      mark<<<SMs, 1>>>: a thread an SM, 16 bytes each
//
// NVML samples the clock now and then; two stamps give its mean over exactly the work between them. clock64 counts from
// another start on each SM, so only stamps of one SM are compared; whether every SM gets a CTA is up to the scheduler,
// and the host takes the median over those that did.
#include "ptx.cuh"

// stamps: u64 [slots][sms][2], {nanoseconds, cycles}. CTAs on an SM beyond `sms` (ids may have gaps) leave no stamp.
extern "C" __global__ void mark(ulonglong2* __restrict__ stamps, int slot, int sms) {
  const int sm = static_cast<int>(smid());
  if (sm >= sms) return;
  const u64 cycles = clock64();
  stamps[static_cast<long long>(slot) * sms + sm] = make_ulonglong2(globaltimer(), cycles);
}

// Keeps one thread, and so the stream, busy for `nanoseconds` of the shared timer.
extern "C" __global__ void spin(u64 nanoseconds) {
  const u64 start = globaltimer();
  while (globaltimer() - start < nanoseconds) {
  }
}

// step: u64 [1], the smallest advance of the shared timer seen in kSteps of them, in ns.
extern "C" __global__ void timer_step(u64* __restrict__ step) {
  constexpr int kSteps = 32;
  u64 smallest = ~0ull;
  u64 previous = globaltimer();
  for (int i = 0; i < kSteps; ++i) {
    u64 now = globaltimer();
    while (now == previous) now = globaltimer();
    smallest = min(smallest, now - previous);
    previous = now;
  }
  *step = smallest;
}

// A launch that does nothing: what starting and retiring a kernel costs.
extern "C" __global__ void empty() {}
