#include "io/slab_shape.h"

#include "kernels/base/error.h"

namespace squareq {
namespace {

using Json = nlohmann::ordered_json;

Json to_json(const FluxShape& s) {
  return {{"hidden", s.hidden},
          {"heads", s.heads},
          {"head_dim", s.head_dim},
          {"axes", s.axes},
          {"double_blocks", s.double_blocks},
          {"single_blocks", s.single_blocks},
          {"mlp_hidden", s.mlp_hidden},
          {"context_in", s.context_in},
          {"vector_in", s.vector_in},
          {"in_channels", s.in_channels},
          {"out_channels", s.out_channels},
          {"guidance", s.guidance},
          {"theta", s.theta}};
}

Json to_json(const T5Shape& s) {
  return {
      {"vocab", s.vocab},       {"width", s.width},           {"layers", s.layers},   {"heads", s.heads},
      {"head_dim", s.head_dim}, {"mlp_hidden", s.mlp_hidden}, {"buckets", s.buckets}, {"max_distance", s.max_distance},
      {"epsilon", s.epsilon}};
}

// A count must be written as an integer: a float would be cut silently.
std::int64_t integer(const Json& value, const std::string& where) {
  if (!value.is_number_integer() || (value.is_number_unsigned() && value.get<std::uint64_t>() > INT64_MAX)) {
    throw FormatError({where, value.dump(-1, ' ', false, Json::error_handler_t::replace), "an integer"});
  }
  return value.get<std::int64_t>();
}

FluxShape flux_from_json(const Json& json, const std::string& where) {
  const auto n = [&](const char* key) { return integer(json.at(key), where + ": " + key); };
  FluxShape s{.hidden = n("hidden"),
              .heads = n("heads"),
              .head_dim = n("head_dim"),
              .double_blocks = n("double_blocks"),
              .single_blocks = n("single_blocks"),
              .mlp_hidden = n("mlp_hidden"),
              .context_in = n("context_in"),
              .vector_in = n("vector_in"),
              .in_channels = n("in_channels"),
              .out_channels = n("out_channels"),
              .guidance = json.at("guidance").get<bool>(),
              .theta = json.at("theta").get<double>()};
  for (std::size_t i = 0; i < s.axes.size(); ++i) s.axes[i] = integer(json.at("axes").at(i), where + ": axes");
  return s;
}

T5Shape t5_from_json(const Json& json, const std::string& where) {
  const auto n = [&](const char* key) { return integer(json.at(key), where + ": " + key); };
  return {.vocab = n("vocab"),
          .width = n("width"),
          .layers = n("layers"),
          .heads = n("heads"),
          .head_dim = n("head_dim"),
          .mlp_hidden = n("mlp_hidden"),
          .buckets = n("buckets"),
          .max_distance = n("max_distance"),
          .epsilon = json.at("epsilon").get<double>()};
}

}  // namespace

std::string_view kind_of(const SlabShape& shape) { return std::holds_alternative<FluxShape>(shape) ? "flux" : "t5"; }

std::int64_t block_count(const SlabShape& shape) {
  if (const auto* flux = std::get_if<FluxShape>(&shape)) return flux->double_blocks + flux->single_blocks;
  return std::get<T5Shape>(shape).layers;
}

nlohmann::ordered_json shape_to_json(const SlabShape& shape) {
  return std::visit([](const auto& s) { return to_json(s); }, shape);
}

SlabShape shape_from_json(const std::string& kind, const nlohmann::ordered_json& json, const std::string& where) {
  if (kind == "flux") return flux_from_json(json, where);
  if (kind == "t5") return t5_from_json(json, where);
  throw FormatError({where, "network '" + kind + "'", "'flux' or 't5'"});
}

}  // namespace squareq
