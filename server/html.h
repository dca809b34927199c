// SPDX-License-Identifier: Apache-2.0
// Plain HTML for the debug pages: headings, paragraphs and tables, readable in a terminal browser, without anything to
// load. Whatever is put into a page is text: it is escaped here and nowhere else.
#ifndef GEMMD_SERVER_HTML_H_
#define GEMMD_SERVER_HTML_H_

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

#include <initializer_list>
#include <string>
#include <vector>

namespace gemmd {

class HtmlPage {
 public:
  // `title`: "statusz". Each page links to `paths`.
  HtmlPage(absl::string_view title, absl::Span<const std::string> paths);

  void Heading(absl::string_view text);
  void Paragraph(absl::string_view text);
  // A paragraph that is a link to a path of this listener.
  void Link(absl::string_view path, absl::string_view text);
  // Rows have as many cells as there are columns.
  void Table(std::initializer_list<absl::string_view> columns, const std::vector<std::vector<std::string>>& rows);

  // The whole document. Once, last.
  std::string Take();

 private:
  std::string html_;
};

// Without the characters that mean something in HTML, in text and in attributes; control characters become U+FFFD.
std::string EscapeHtml(absl::string_view text);

}  // namespace gemmd

#endif  // GEMMD_SERVER_HTML_H_
