"""The page's style sheet: light and dark, wide and narrow."""

STYLE = """\
:root {
  color-scheme: light dark;
  --page: #fbfbfa; --card: #ffffff; --ink: #1b1f24; --muted: #57606a; --grid: #e3e6ea;
  --edge: #d5dae0; --accent: #0a58a6; --mark: #b34a00;
  --series-1: #0072b2; --series-2: #b34a00; --series-3: #00785a; --series-4: #a3467f;
  --series-5: #8a6d00; --series-6: #2f6f9f; --series-7: #57606a; --series-8: #1b1f24;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171b; --card: #1c2127; --ink: #e8ebee; --muted: #a3adb8; --grid: #2d343c;
    --edge: #38414b; --accent: #6cb6ff; --mark: #f0a35e;
    --series-1: #56b4e9; --series-2: #f0a35e; --series-3: #33c79b; --series-4: #e08cc2;
    --series-5: #f0e442; --series-6: #9ecbff; --series-7: #a3adb8; --series-8: #e8ebee;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
}
header, main, footer { max-width: 76rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 1.5rem; }
footer { color: var(--muted); padding-bottom: 2rem; font-size: .875rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 0 0 .5rem; }
h3 { font-size: 1.0625rem; margin: 1rem 0 .5rem; overflow-wrap: anywhere; }
h4 { font-size: .9375rem; margin: .75rem 0 .375rem; }
p { margin: .25rem 0 .75rem; max-width: 48rem; }
a { color: var(--accent); }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
.skip { position: absolute; left: -999rem; }
.skip:focus { left: 1rem; top: 1rem; background: var(--card); padding: .5rem 1rem; z-index: 1; }
.kind, .note, .lead, figcaption, dt { color: var(--muted); }
.kind { margin: 0; font-size: .875rem; }
.note, figcaption { font-size: .875rem; }
nav ul {
  display: flex; flex-wrap: wrap; gap: .25rem 1rem; list-style: none; padding: 0;
  margin: .5rem 0;
}
nav a { font-size: .875rem; display: inline-block; padding: .25rem 0; }
section { border-top: 1px solid var(--edge); padding: 1.25rem 0 .75rem; }
.tiles {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(max(8.75rem, 19%), 1fr));
  gap: .75rem; margin: .5rem 0;
}
.tiles div {
  background: var(--card); border: 1px solid var(--edge); border-radius: .5rem;
  padding: .625rem .75rem;
}
dt { font-size: .8125rem; }
dd { margin: 0; font-size: 1.375rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.tiles div:first-child dd, .tiles div:nth-child(2) dd { color: var(--accent); }
.drawings {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr));
  gap: 1rem; align-items: start;
}
.drawing {
  margin: 0; background: var(--card); border: 1px solid var(--edge); border-radius: .5rem;
  padding: .75rem 1rem; max-width: 34rem;
}
.drawing h4 { margin-top: 0; }
.drawings:has(> :nth-child(4):last-child) {
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 28rem), 1fr));
}
.switched { max-width: 40rem; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: inherit; }
.beside {
  display: grid; gap: 1.25rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); align-items: start;
}
.beside > .wide { grid-column: 1 / -1; }
.beside > :not(.wide) .drawings { grid-template-columns: 1fr; }
.block { min-width: 0; }
.axes {
  border: 0; padding: 0; margin: 0 0 .5rem; display: flex; flex-wrap: wrap; gap: .375rem;
  align-items: center;
}
.axes legend { float: left; padding: 0; margin-right: .375rem; color: var(--muted); }
.axes input { position: absolute; opacity: 0; }
.axes label {
  border: 1px solid var(--edge); border-radius: 1rem; padding: .1875rem .75rem;
  cursor: pointer;
}
.axes input:checked + label {
  background: var(--accent); border-color: var(--accent); color: var(--card);
}
.axes input:focus-visible + label { outline: 3px solid var(--accent); outline-offset: 2px; }
.axis { display: none; }
.switched:has(#axis-rounds:checked) .axis-rounds,
.switched:has(#axis-uplink:checked) .axis-uplink,
.switched:has(#axis-both:checked) .axis-both,
.switched:has(#axis-all:checked) .axis { display: block; }
.switched:has(#axis-all:checked) { max-width: none; }
.switched:has(#axis-all:checked) .axis-row {
  display: grid; gap: .5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr));
}
.pick {
  display: flex; flex-wrap: wrap; gap: .25rem .75rem; align-items: center; margin: .5rem 0;
}
.pick[hidden] { display: none; }
.pick input { flex: 1 1 12rem; accent-color: var(--accent); min-height: 1.75rem; }
.pick output { flex: 1 1 100%; font-variant-numeric: tabular-nums; white-space: pre-line; }
.picked use {
  stroke: var(--mark) !important; fill: var(--mark) !important; stroke-width: 7px !important;
}
tr.picked > * { background: var(--grid); }
.cards {
  list-style: none; padding: 0; margin: .5rem 0; display: grid; gap: .75rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 27rem), 1fr));
}
.cards.narrow { grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); }
.beside .cards { grid-template-columns: 1fr; }
.cards li {
  background: var(--card); border: 1px solid var(--edge); border-radius: .5rem;
  padding: .5rem .75rem; min-width: 0;
}
.cards h4 { margin: 0 0 .375rem; overflow-wrap: anywhere; }
.strip { margin-bottom: .75rem; }
.row { display: flex; flex-wrap: wrap; gap: .5rem; }
.picture { margin: 0; width: 4.5rem; }
.cards .picture { flex: 1 1 3.5rem; max-width: 6.5rem; width: auto; }
.cards .row { flex-wrap: nowrap; }
.picture img {
  width: 100%; height: auto; display: block; image-rendering: pixelated;
  border: 2px solid transparent; border-radius: .25rem; background: var(--grid);
}
.picture.own img { border-color: var(--accent); }
.picture figcaption {
  font-size: .75rem; line-height: 1.25; margin-top: .1875rem; overflow-wrap: anywhere;
}
.picture figcaption span { display: block; }
.picture.own figcaption { color: var(--ink); font-weight: 600; }
#headline table { font-size: 1.0625rem; }
details { margin: .375rem 0; }
summary { cursor: pointer; color: var(--accent); font-size: .875rem; padding: .25rem 0; }
.scroll { overflow-x: auto; max-height: 32rem; margin: .5rem 0; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
caption { font-size: .875rem; text-align: left; color: var(--muted); padding-bottom: .25rem; }
th, td {
  text-align: left; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid var(--grid);
  vertical-align: top;
}
td { overflow-wrap: anywhere; }
tbody th { font-weight: 400; }
.number, thead th:not(:first-child) { white-space: nowrap; }
pre {
  background: var(--card); border: 1px solid var(--edge); border-radius: .5rem;
  padding: .75rem; overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere;
  max-width: 60rem;
}
code {

  font: .875rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
@media (max-width: 30rem) {
  header, main, footer { padding-left: .75rem; padding-right: .75rem; }
  .drawing, .cards li { padding: .5rem; }
}
@media print { nav, .pick, .skip { display: none; } .axis { display: block; } }
"""
