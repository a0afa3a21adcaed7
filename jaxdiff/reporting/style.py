"""The style sheet of a page. Colours follow the reader's light or dark theme."""

CSS = """
:root {
  color-scheme: light dark;
  --paper: #fff; --ink: #1d1d1f; --grey: #6e6e73; --rule: #d8d8dc; --panel: #f5f5f7; --mark: #fff1b8;
  --c0: #0072b2; --c1: #d55e00; --c2: #008a64; --c3: #b8588f; --c4: #a66f00; --c5: #3d8fc2; --c6: #555; --c7: #8c564b;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #161618; --ink: #ececf0; --grey: #9d9da6; --rule: #3a3a3f; --panel: #202024; --mark: #574a12;
    --c0: #56b4e9; --c1: #ff8a3d; --c2: #2fc79a; --c3: #e79ac6; --c4: #e6b022; --c5: #8ecbf0; --c6: #bbb; --c7: #c99a8f;
  }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1400px; padding: 1.5rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; margin: 0 0 .5rem; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1.05rem; margin: 1.4rem 0 .4rem; }
nav a { margin-right: 1rem; color: var(--c0); }
table { border-collapse: collapse; font-size: .87rem; }
.wide { overflow-x: auto; }
th, td { padding: .25rem .9rem .25rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--rule); }
.values, .settings { overflow-wrap: normal; }
.values td, .values thead th { text-align: right; padding-left: .9rem; padding-right: 0; white-space: nowrap; }
.values thead th:first-child { text-align: left; padding-left: 0; }
.settings td { min-width: 12rem; overflow-wrap: anywhere; }
tbody th { font-weight: 500; }
thead th { color: var(--grey); font-weight: 600; }
.interval, .n { color: var(--grey); font-size: .8rem; margin-left: .3rem; }
mark { background: var(--mark); color: inherit; padding: 0 .2rem; }
.refused { border-left: 4px solid var(--c1); padding-left: .8rem; }
.answer li:first-child { font-weight: 600; }
.charts, .grids { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
figure { margin: 0; }
figcaption { color: var(--grey); font-size: .87rem; padding: .3rem 0; }
.chart { width: 400px; max-width: 100%; background: var(--panel); border-radius: 8px; padding: .5rem .6rem; }
.chart svg { width: 100%; height: auto; display: block; }
img { max-width: 100%; height: auto; image-rendering: auto; border-radius: 4px; }
svg text { fill: var(--grey); font: 11px system-ui, sans-serif; }
svg .grid { stroke: var(--rule); }
svg .level { stroke: var(--grey); stroke-dasharray: 5 4; }
svg path { fill: none; stroke: currentColor; stroke-width: 1.8; stroke-linejoin: round; }
svg circle { fill: currentColor; }
.legend { list-style: none; margin: .3rem 0 0; padding: 0; font-size: .8rem; display: flex; flex-wrap: wrap;
  gap: .1rem .9rem; }
.legend li::before { content: ""; display: inline-block; width: .9rem; height: .2rem; margin-right: .35rem;
  background: currentColor; vertical-align: middle; }
.colour-0 { color: var(--c0); } .colour-1 { color: var(--c1); }
.colour-2 { color: var(--c2); } .colour-3 { color: var(--c3); }
.colour-4 { color: var(--c4); } .colour-5 { color: var(--c5); }
.colour-6 { color: var(--c6); } .colour-7 { color: var(--c7); }
.grey { color: var(--grey); }
details { margin: .6rem 0; }
summary { cursor: pointer; color: var(--c0); }
pre { background: var(--panel); padding: .8rem; overflow-x: auto; font-size: .8rem; white-space: pre-wrap; }
"""
