// The two layouts that adapters have in files: one for each fused linear, or one for each of the parts it is made of.
// Both are sums of rank-one terms, so going from one to the other is a matter of which terms share a row of `down`.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "io/lora_file.h"
#include "io/tensor_names.h"

namespace squareq {

// What `adapters` together do to rows [row_begin, row_begin + rows) of `linear`, as one adapter of the least rank that
// their terms allow: terms with the same row of `down` become one, terms that do nothing there are left out. Exact but
// for the scale, which is kept if it is the same for all of them, and otherwise folded into the matrices. nullopt if
// they do nothing there.
std::optional<LoraAdapter> adapter_on_rows(const std::vector<LoraAdapter>& adapters, const LinearSize& linear,
                                           std::int64_t row_begin, std::int64_t rows);

// The adapters that a file of `naming` holds in place of `adapters`, in execution order; any number may cover the same
// rows.
//
// kKohya: one adapter a linear. Split adapters become block-diagonal or, where their `down` are equal, share it again.
// kPeft: one adapter a diffusers module, scale folded in, `down` repeated for the parts of a fused adapter; all ranks
// are brought to the largest by zeros, since readers without alpha took the first rank for all.
//
// Adapters that do nothing are left out, because readers find wrong ranks for them, unless all of them are.
std::vector<LoraAdapter> arrange_adapters(std::vector<LoraAdapter> adapters, const FluxShape& shape, LoraNaming naming);

// Puts the scale into the matrices, so that alpha = rank. `up` is multiplied by powers of two only.
void fold_scale(LoraAdapter& adapter);

// What tells `up` of the final modulation in a diffusers file from ours.
void swap_halves(std::vector<float>& up);

// Adds terms of zeros.
void pad_rank(LoraAdapter& adapter, std::int64_t rank);

}  // namespace squareq
