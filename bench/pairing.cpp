// SPDX-License-Identifier: MIT
#include "pairing.hpp"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <optional>
#include <vector>

namespace vmem::bench {
namespace {

double seconds(FunctionRef<std::string()> call, std::string& error) {
  const auto start = std::chrono::steady_clock::now();
  error = call();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> values) {
  std::ranges::sort(values);
  const std::size_t n = values.size();
  return n == 0 ? 0 : (values[n / 2] + values[(n - 1) / 2]) / 2;
}

std::optional<Subject> current;
std::string current_workload;

}  // namespace

void measure(benchmark::State& state, const Row& row) {
  std::vector<double> plain;
  std::vector<double> ratio;
  std::string error;
  // Reclaim may take a page of the target between two reads; a true difference stays.
  int differences = 0;
  const auto stop = [&](const std::string& why) {
    state.SkipWithError(why.c_str());
    return false;
  };
  const auto pair = [&](bool counted) {
    for (int i = 0; i < row.warm_up; ++i) {
      if (error = row.ours(); !error.empty()) return stop(error);
    }
    const double a = seconds(row.ours, error);
    if (!error.empty()) return stop(error);
    const double b = seconds(row.plain, error);
    if (!error.empty()) return stop(error);
    if (!row.agree() && ++differences == 3) return stop("the two readers disagree");
    if (!counted) return true;
    const auto operations = static_cast<double>(row.operations);
    plain.push_back(b / operations);
    ratio.push_back(a / b);
    state.SetIterationTime(a / operations);
    return true;
  };
  // Where one pair takes seconds, a warm-up would only cost time.
  bool good = state.max_iterations <= 1 || pair(false);
  for (auto _ : state) {
    if (!good || !(good = pair(true))) break;
  }
  state.counters["plain"] = median(plain);
  state.counters["ratio"] = median(ratio);
}

int pairs(int usual) {
  const char* text = std::getenv("VMEM_BENCH_PAIRS");
  const int wanted = text != nullptr ? std::atoi(text) : 0;
  return wanted > 0 ? wanted : usual;
}

Subject* subject(benchmark::State& state, const std::string& workload) {
  if (current && current_workload == workload) return &*current;
  end_subject();
  const auto fail = [&](const std::string& why) {
    state.SkipWithError((workload + ": " + why).c_str());
    return nullptr;
  };
  auto target = Target::start(workload, *scale_from_environment());
  if (!target) return fail(target.error());
  auto root = SysRoot::live();
  if (!root) return fail(to_string(root.error()));
  if (root->pfn_access() != PfnAccess::full) return fail("PFNs are hidden: run as root");
  auto process = root->process(target->pid());
  if (!process) return fail(to_string(process.error()));
  current.emplace(std::move(*target), std::move(*process), nullptr);
  auto translator = open_translator(current->process, Backend::pagemap);
  if (!translator) {
    end_subject();
    return fail(to_string(translator.error()));
  }
  current->translator = std::move(*translator);
  current_workload = workload;
  return &*current;
}

void end_subject() {
  if (current) current->translator.reset();
  current.reset();
}

}  // namespace vmem::bench
