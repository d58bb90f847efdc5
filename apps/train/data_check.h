// squareq-train CONFIG --check-data
#pragma once

#include <string>

namespace squareq {

// Prints the report, as JSON if asked, and writes the contact sheet into the output folder. Status 1 where something
// prevents training.
int run_data_check(const std::string& config_path, bool json);

}  // namespace squareq
