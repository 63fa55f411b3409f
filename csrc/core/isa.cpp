#include "core/isa.hpp"

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "mahal/context.hpp"
#include "mahal/error.hpp"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace mahal {
namespace {

constexpr Isa all_isas[] = {Isa::base, Isa::avx2, Isa::avx512};
constexpr const char* rule = "must be base, avx2 or avx512";

#if defined(__x86_64__)

// Register state that the operating system saves, which the CPU flags alone do not tell.
std::uint64_t saved_state() {
  std::uint32_t low = 0, high = 0;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return std::uint64_t{high} << 32 | low;
}

Isa best_of_machine() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return Isa::base;
  constexpr unsigned os_saves = 1u << 27;
  constexpr unsigned leaf1 =
      1u << 12 /*fma*/ | 1u << 22 /*movbe*/ | 1u << 28 /*avx*/ | 1u << 29 /*f16c*/ | os_saves;
  if ((c & leaf1) != leaf1) return Isa::base;
  const std::uint64_t saved = saved_state();
  constexpr std::uint64_t ymm_state = 0x6;
  constexpr std::uint64_t zmm_state = 0xe6;
  if ((saved & ymm_state) != ymm_state) return Isa::base;

  if (!__get_cpuid(0x80000001u, &a, &b, &c, &d)) return Isa::base;
  constexpr unsigned lzcnt = 1u << 5;
  if ((c & lzcnt) == 0) return Isa::base;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return Isa::base;
  constexpr unsigned leaf7 = 1u << 3 /*bmi1*/ | 1u << 5 /*avx2*/ | 1u << 8 /*bmi2*/;
  if ((b & leaf7) != leaf7) return Isa::base;

  constexpr unsigned wide =
      1u << 16 /*f*/ | 1u << 17 /*dq*/ | 1u << 28 /*cd*/ | 1u << 30 /*bw*/ | 1u << 31 /*vl*/;
  if ((b & wide) != wide || (saved & zmm_state) != zmm_state) return Isa::avx2;
  return Isa::avx512;
}

#else

Isa best_of_machine() { return Isa::base; }

#endif

Isa best_isa() {
  static const Isa best = best_of_machine();
  return best;
}

std::string supported_names() {
  std::string names;
  for (Isa isa : all_isas) {
    if (!isa_supported(isa)) continue;
    if (!names.empty()) names += ", ";
    names += isa_name(isa);
  }
  return names;
}

void require_supported(const char* argument, Isa isa) {
  if (isa_supported(isa)) return;
  throw_value_error("", argument,
                    "must be a level that this machine runs (" + supported_names() + ")",
                    isa_name(isa));
}

Isa initial_isa() {
  const char* wanted = std::getenv("MAHAL_ISA");
  if (wanted == nullptr || *wanted == '\0') return best_isa();
  for (Isa isa : all_isas) {
    if (std::string(wanted) == isa_name(isa)) {
      require_supported("MAHAL_ISA", isa);
      return isa;
    }
  }
  throw_value_error("", "MAHAL_ISA", rule, std::string("'") + wanted + "'");
}

constexpr int unset = -1;
std::atomic<int> selected{unset};

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::base:
      return "base";
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
  }
  throw_value_error("", "isa", rule, std::to_string(static_cast<int>(isa)));
}

bool isa_supported(Isa isa) { return isa <= best_isa(); }

Isa active_isa() {
  int current = selected.load(std::memory_order_relaxed);
  if (current == unset) {
    const int initial = static_cast<int>(initial_isa());
    if (selected.compare_exchange_strong(current, initial, std::memory_order_relaxed)) {
      current = initial;
    }
  }
  return static_cast<Isa>(current);
}

void set_isa(Isa isa) {
  require_supported("isa", isa);
  selected.store(static_cast<int>(isa), std::memory_order_relaxed);
}

}  // namespace mahal
