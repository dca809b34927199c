// SPDX-License-Identifier: Apache-2.0
#include "server/html.h"

#include "absl/strings/str_cat.h"

#include <utility>

namespace gemmd {
namespace {

constexpr char kHead[] =
    "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
    "<meta name=\"viewport\" content=\"width=device-width\">\n<style>\n"
    "body { font: 14px/1.5 system-ui, sans-serif; margin: 1.5em; color: #222; }\n"
    "table { border-collapse: collapse; margin: 0.5em 0 1.5em; }\n"
    "th, td { border: 1px solid #ccc; padding: 0.2em 0.6em; text-align: left; font-variant-numeric: tabular-nums; }\n"
    "th { background: #f0f0f0; }\n"
    "</style>\n";

}  // namespace

std::string EscapeHtml(absl::string_view text) {
  std::string escaped;
  for (const char c : text) {
    switch (c) {
      case '&':
        escaped += "&amp;";
        break;
      case '<':
        escaped += "&lt;";
        break;
      case '>':
        escaped += "&gt;";
        break;
      case '"':
        escaped += "&quot;";
        break;
      case '\'':
        escaped += "&#39;";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
          escaped += "\xef\xbf\xbd";
        } else {
          escaped += c;
        }
    }
  }
  return escaped;
}

HtmlPage::HtmlPage(absl::string_view title, absl::Span<const std::string> paths) {
  absl::StrAppend(&html_, kHead, "<title>gemmd ", EscapeHtml(title), "</title>\n</head>\n<body>\n<p>");
  for (const std::string& path : paths) {
    absl::StrAppend(&html_, "<a href=\"", EscapeHtml(path), "\">", EscapeHtml(path), "</a> ");
  }
  absl::StrAppend(&html_, "</p>\n<h1>gemmd ", EscapeHtml(title), "</h1>\n");
}

void HtmlPage::Heading(absl::string_view text) { absl::StrAppend(&html_, "<h2>", EscapeHtml(text), "</h2>\n"); }

void HtmlPage::Paragraph(absl::string_view text) { absl::StrAppend(&html_, "<p>", EscapeHtml(text), "</p>\n"); }

void HtmlPage::Link(absl::string_view path, absl::string_view text) {
  absl::StrAppend(&html_, "<p><a href=\"", EscapeHtml(path), "\">", EscapeHtml(path), "</a>: ", EscapeHtml(text),
                  "</p>\n");
}

void HtmlPage::Table(std::initializer_list<absl::string_view> columns,
                     const std::vector<std::vector<std::string>>& rows) {
  absl::StrAppend(&html_, "<table>\n<tr>");
  for (const absl::string_view column : columns) absl::StrAppend(&html_, "<th>", EscapeHtml(column), "</th>");
  absl::StrAppend(&html_, "</tr>\n");
  for (const std::vector<std::string>& row : rows) {
    absl::StrAppend(&html_, "<tr>");
    for (const std::string& cell : row) absl::StrAppend(&html_, "<td>", EscapeHtml(cell), "</td>");
    absl::StrAppend(&html_, "</tr>\n");
  }
  absl::StrAppend(&html_, "</table>\n");
}

std::string HtmlPage::Take() {
  html_ += "</body>\n</html>\n";
  return std::move(html_);
}

}  // namespace gemmd
