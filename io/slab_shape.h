// Network shapes as JSON, as slabs and their tools spell them.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "io/slab.h"

namespace squareq {

std::string_view kind_of(const SlabShape& shape);  // "flux", "t5"
std::int64_t block_count(const SlabShape& shape);  // transformer blocks, all kinds together
nlohmann::ordered_json shape_to_json(const SlabShape& shape);

// Throws FormatError at `where` for an unknown kind, nlohmann::json::exception for fields that are missing or of
// another type.
SlabShape shape_from_json(const std::string& kind, const nlohmann::ordered_json& json, const std::string& where);

}  // namespace squareq
