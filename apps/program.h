// What every program does around its job: options, --version, errors for people, exit status.
#pragma once

#include <fmt/format.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <new>

namespace squareq {

// Parses the options and runs `job`, whose result is the exit status. Errors are one readable line on standard error
// and status 1. The log goes to standard error, so that standard output holds results only.
template <class Job>
int run_program(CLI::App& app, int argc, char** argv, Job job) {
  app.set_version_flag("--version", "squareq " SQUAREQ_VERSION);
  spdlog::set_default_logger(spdlog::stderr_color_mt("squareq"));
  spdlog::set_pattern("%H:%M:%S %^%l%$ %v");
  try {
    app.parse(argc, argv);
    return job();
  } catch (const CLI::ParseError& error) {
    return app.exit(error);
  } catch (const std::bad_alloc&) {
    fmt::print(stderr, "error: not enough memory\n");
  } catch (const std::exception& error) {
    fmt::print(stderr, "error: {}\n", error.what());
  }
  return 1;
}

}  // namespace squareq
