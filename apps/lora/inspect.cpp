#include "apps/lora/inspect.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <regex>
#include <set>
#include <vector>

#include "io/lora_file.h"
#include "io/tensor_names.h"
#include "kernels/low_rank.h"

namespace squareq {
namespace {

using Json = nlohmann::ordered_json;

// Frobenius norm of the weight change at strength 1.
double change_norm(LoraAdapter& a) {
  const std::vector<double> values =
      singular_values({.rows = a.rows, .cols = a.in, .rank = a.rank, .up = std::move(a.up), .down = std::move(a.down)});
  return static_cast<double>(a.scale()) *
         std::sqrt(std::inner_product(values.begin(), values.end(), values.begin(), 0.0));
}

// "double_blocks.*.img_attn.qkv", and the rows where the adapter does not cover the linear: "... rows 0-3071".
std::string kind_of(const LoraAdapter& adapter, const std::map<std::string, std::int64_t>& outs) {
  static const std::regex index(R"(_blocks\.\d+\.)");
  std::string kind = std::regex_replace(adapter.linear, index, "_blocks.*.");
  if (adapter.rows == outs.at(adapter.linear)) return kind;
  return kind + fmt::format(" rows {}-{}", adapter.row_begin, adapter.row_begin + adapter.rows - 1);
}

struct Group {
  std::int64_t adapters = 0;
  std::set<std::int64_t> ranks;
  std::set<float> alphas;
  std::vector<double> norms;

  void add(const LoraAdapter& adapter, double norm) {
    ++adapters;
    ranks.insert(adapter.rank);
    alphas.insert(adapter.alpha);
    norms.push_back(norm);
  }
  double total() const { return std::sqrt(std::inner_product(norms.begin(), norms.end(), norms.begin(), 0.0)); }
  double largest() const { return *std::max_element(norms.begin(), norms.end()); }
};

template <class Value>
std::string range_text(const std::set<Value>& values) {
  if (values.size() == 1) return fmt::format("{}", *values.begin());
  return fmt::format("{} to {}", *values.begin(), *values.rbegin());
}

std::string naming_text(const LoraFile& file) {
  if (!file.naming) return "other";
  return *file.naming == LoraNaming::kKohya ? "kohya" : "peft";
}

std::string hash_text(const LoraFile& file, const std::string& found) {
  const auto said = file.metadata.find("sshs_model_hash");
  if (said == file.metadata.end()) return "not noted";
  return said->second == found ? "as noted" : "other than noted";
}

struct Report {
  Group all;
  std::vector<std::pair<std::string, Group>> kinds;  // in the order of the file's adapters
  std::vector<double> norms;                         // of each adapter
  std::int64_t parameters = 0;
};

Report make_report(LoraFile& file, const FluxShape& shape) {
  std::map<std::string, std::int64_t> outs;
  for (const LinearSize& linear : flux_linears(shape)) outs[linear.name] = linear.out;
  Report report;
  std::map<std::string, std::size_t> index;
  for (LoraAdapter& adapter : file.adapters) {
    const double norm = change_norm(adapter);
    const std::string kind = kind_of(adapter, outs);
    const auto [found, added] = index.try_emplace(kind, report.kinds.size());
    if (added) report.kinds.emplace_back(kind, Group());
    report.kinds[found->second].second.add(adapter, norm);
    report.all.add(adapter, norm);
    report.norms.push_back(norm);
    report.parameters += adapter.rank * (adapter.in + adapter.rows);
  }
  return report;
}

Json to_json(const Group& group) {
  return {{"adapters", group.adapters},
          {"ranks", group.ranks},
          {"alphas", group.alphas},
          {"norm", group.total()},
          {"largest_norm", group.largest()}};
}

Json to_json(const LoraFile& file, const Report& report, const std::string& hash) {
  Json kinds = Json::object();
  for (const auto& [kind, group] : report.kinds) kinds[kind] = to_json(group);
  Json adapters = Json::array();
  for (std::size_t i = 0; i < file.adapters.size(); ++i) {
    const LoraAdapter& a = file.adapters[i];
    adapters.push_back({{"linear", a.linear},
                        {"row_begin", a.row_begin},
                        {"rows", a.rows},
                        {"in", a.in},
                        {"rank", a.rank},
                        {"alpha", a.alpha},
                        {"norm", report.norms[i]}});
  }
  return {{"path", file.path},
          {"naming", naming_text(file)},
          {"dtype", name_of(file.dtype)},
          {"parameters", report.parameters},
          {"model_hash", hash},
          {"model_hash_is", hash_text(file, hash)},
          {"all", to_json(report.all)},
          {"targets", kinds},
          {"adapters", adapters},
          {"unmapped", file.unmapped},
          {"metadata", file.metadata}};
}

void print_line(const std::string& name, const Group& group) {
  fmt::print("{:<52} {:>8} {:>10} {:>10} {:>11.4e} {:>11.4e}\n", name, group.adapters, range_text(group.ranks),
             range_text(group.alphas), group.total(), group.largest());
}

}  // namespace

void inspect_lora(const std::string& path, const FluxShape& shape, bool modules, bool json) {
  LoraFile file = read_lora(path, shape);
  const Report report = make_report(file, shape);
  const std::string hash = model_hash(path);
  if (json) {
    fmt::print("{}\n", to_json(file, report, hash).dump(2, ' ', false, Json::error_handler_t::replace));
    return;
  }
  fmt::print("{}: {} naming, {}, {} parameters in {} adapters\nmodel hash {} ({})\n\n", path, naming_text(file),
             name_of(file.dtype), report.parameters, report.all.adapters, hash, hash_text(file, hash));
  fmt::print("{:<52} {:>8} {:>10} {:>10} {:>11} {:>11}\n", "linear", "adapters", "rank", "alpha", "norm", "largest");
  for (const auto& [kind, group] : report.kinds) print_line(kind, group);
  print_line("all", report.all);
  if (modules) {
    fmt::print("\n{:<40} {:>14} {:>8} {:>6} {:>8} {:>11}\n", "linear", "rows", "in", "rank", "alpha", "norm");
    for (std::size_t i = 0; i < file.adapters.size(); ++i) {
      const LoraAdapter& a = file.adapters[i];
      fmt::print("{:<40} {:>14} {:>8} {:>6} {:>8} {:>11.4e}\n", a.linear,
                 fmt::format("{}-{}", a.row_begin, a.row_begin + a.rows - 1), a.in, a.rank, a.alpha, report.norms[i]);
    }
  }
  if (!file.unmapped.empty()) {
    fmt::print("\n{} tensors that are not for the transformer, the first is '{}'\n", file.unmapped.size(),
               file.unmapped.front());
  }
  if (!file.metadata.empty()) fmt::print("\n");
  for (const auto& [key, value] : file.metadata) {
    fmt::print("{} = {}{}\n", key, value.substr(0, 200), value.size() > 200 ? "..." : "");
  }
}

}  // namespace squareq
