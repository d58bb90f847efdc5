// Letters and digits of Unicode 15.1 to 17. Hugging Face's tokenizers know them, the ICU of Debian 12 (Unicode 15.0)
// does not; without this table the same prompt would get other ids there than on newer systems.
#pragma once

#include <cstdint>

namespace squareq {

struct RecentCharacters {
  char32_t first;
  char32_t last;
  bool number;    // else letters
  int32_t lower;  // distance to the lower-case letter
};

inline constexpr RecentCharacters kRecentCharacters[] = {
    {0x1C89, 0x1C89, false, 1},      {0x1C8A, 0x1C8A, false, 0},    {0xA7CB, 0xA7CB, false, -42343},
    {0xA7CC, 0xA7CC, false, 1},      {0xA7CD, 0xA7CD, false, 0},    {0xA7D2, 0xA7D2, false, 1},
    {0xA7D4, 0xA7D4, false, 1},      {0xA7DA, 0xA7DA, false, 1},    {0xA7DB, 0xA7DB, false, 0},
    {0xA7DC, 0xA7DC, false, -42561}, {0x105C0, 0x105F3, false, 0},  {0x10D40, 0x10D49, true, 0},
    {0x10D4A, 0x10D4F, false, 0},    {0x10D50, 0x10D65, false, 32}, {0x10D6F, 0x10D85, false, 0},
    {0x10EC2, 0x10EC4, false, 0},    {0x11380, 0x11389, false, 0},  {0x1138B, 0x1138B, false, 0},
    {0x1138E, 0x1138E, false, 0},    {0x11390, 0x113B5, false, 0},  {0x113B7, 0x113B7, false, 0},
    {0x113D1, 0x113D1, false, 0},    {0x113D3, 0x113D3, false, 0},  {0x116D0, 0x116E3, true, 0},
    {0x11BC0, 0x11BE0, false, 0},    {0x11BF0, 0x11BF9, true, 0},   {0x13460, 0x143FA, false, 0},
    {0x16100, 0x1611D, false, 0},    {0x16130, 0x16139, true, 0},   {0x16D40, 0x16D6C, false, 0},
    {0x16D70, 0x16D79, true, 0},     {0x18CFF, 0x18CFF, false, 0},  {0x1CCF0, 0x1CCF9, true, 0},
    {0x1E5D0, 0x1E5ED, false, 0},    {0x1E5F0, 0x1E5F0, false, 0},  {0x1E5F1, 0x1E5FA, true, 0},
    {0x2EBF0, 0x2EE5D, false, 0},
};

// The row of a code point, or null.
inline const RecentCharacters* find_recent(char32_t code_point) {
  for (const RecentCharacters& row : kRecentCharacters) {
    if (code_point >= row.first && code_point <= row.last) return &row;
  }
  return nullptr;
}

}  // namespace squareq
