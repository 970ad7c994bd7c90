"""What every page carries as it is: its looks, the script that draws its plots, and that it may load nothing."""

from __future__ import annotations

NOTHING_FROM_ELSEWHERE = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; "
    "form-action 'none'"
)
"""A browser holds the page to it, whatever stands in it: only what is in the file runs, and no request is made."""

STYLE = """
:root { color-scheme: light dark; --text: #1c2128; --soft: #59636e; --line: #d1d9e0; --back: #ffffff; --box: #f6f8fa;
  --link: #0858b8; --good: #1a7440; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6edf3; --soft: #9da7b3; --line: #3d444d; --back: #0d1117; --box: #161b22; --link: #6cb2ff;
    --good: #58c27d; }
}
* { box-sizing: border-box; }
html { scroll-padding-top: 1rem; -webkit-text-size-adjust: 100%; }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--text); background: var(--back); max-width: 62rem;
  margin: 0 auto; padding: 1rem; }
h1, h2, h3, p, figcaption, dd, li { overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .5rem 0 1rem; }
h2 { font-size: 1.35rem; margin: 3rem 0 .8rem; border-top: 1px solid var(--line); padding-top: 1rem; }
h3 { font-size: 1.08rem; margin: 2rem 0 .5rem; }
p { margin: .5rem 0; max-width: 46rem; }
a { color: var(--link); }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
main:focus { outline: none; }
.skip { position: absolute; left: -100vw; top: 0; background: var(--back); padding: .6rem 1rem; z-index: 9; }
.skip:focus { left: 0; }
nav ul { list-style: none; margin: 0; padding: 0; }
nav > details > ul > li > ul { columns: 2; padding-left: 1rem; font-size: .92rem; }
nav li { margin: .15rem 0; break-inside: avoid; }
nav { border: 1px solid var(--line); border-radius: .5rem; padding: .3rem 1rem; background: var(--box);
  margin-bottom: 1rem; }
@media (min-width: 84rem) {
  body { max-width: 82rem; display: grid; grid-template-columns: 15rem minmax(0, 62rem); column-gap: 3rem;
    align-content: start; }
  body > header, body > main { grid-column: 2; }
  body > nav { grid-column: 1; grid-row: 1 / span 2; align-self: start; position: sticky; top: 1rem;
    max-height: calc(100vh - 2rem); overflow-y: auto; }
  nav > details > ul > li > ul { columns: 1; }
  body:not(:has(nav)) { display: block; max-width: 62rem; }
}
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: .93rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem 1rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td { white-space: nowrap; } td.long { white-space: normal; min-width: min(22rem, 80vw); overflow-wrap: anywhere; }
th { color: var(--soft); font-weight: 600; white-space: nowrap; }
pre { overflow-x: auto; background: var(--box); border: 1px solid var(--line); padding: .8rem; border-radius: .4rem;
  font-size: .85rem; line-height: 1.45; }
figure { margin: 1.2rem 0; } figcaption { color: var(--soft); font-size: .92rem; max-width: 46rem; }
details { margin: .4rem 0; } summary { cursor: pointer; color: var(--link); font-size: .92rem; width: fit-content; }
details > .scroll { max-height: 24rem; overflow-y: auto; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: .8rem; margin: 1rem 0; }
.cards div { border: 1px solid var(--line); border-radius: .5rem; padding: .7rem 1rem; background: var(--box); }
dt { color: var(--soft); font-size: .9rem; }
dd { margin: 0; font-size: 1.25rem; font-weight: 600; }
dd small { display: block; font-weight: 400; font-size: .88rem; color: var(--soft); }
.answer { font-size: 1.2rem; font-weight: 600; }
.marked td { color: var(--good); font-weight: 600; }
@media print { nav, .skip { display: none; } body { max-width: none; } }
"""

DRAW = """
(() => {
  const contents = document.querySelector("nav details");
  if (contents) contents.open = matchMedia("(min-width: 84rem)").matches;  // beside the text, not above the answer
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const theme = () => {
    const named = getComputedStyle(document.documentElement);
    const [text, soft, line, back, box] =
      ["text", "soft", "line", "back", "box"].map((name) => named.getPropertyValue("--" + name).trim());
    const axis = { gridcolor: line, linecolor: soft, tickcolor: soft, zerolinecolor: line };
    return { layout: {
      font: { color: text, family: "system-ui, sans-serif" }, xaxis: axis, yaxis: axis,
      hoverlabel: { bgcolor: box, bordercolor: soft, font: { color: text } },
      annotationdefaults: { bgcolor: back }, shapedefaults: { line: { color: soft } },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: soft, activecolor: text },
    } };
  };
  const waiting = [...document.querySelectorAll("figure")].filter((figure) => figure.querySelector(".plot"));
  const drawn = [];
  // One after the other, so that the page answers meanwhile.
  const next = () => {
    document.querySelector("#js-plotly-tester")?.setAttribute("aria-hidden", "true");  // where plotly measures text
    const figure = waiting.shift();
    if (!figure) { document.documentElement.dataset.drawn = drawn.length; return; }
    const plot = figure.querySelector(".plot");
    const { data, layout } = JSON.parse(figure.querySelector("script").textContent);
    Plotly.newPlot(plot, data, { ...layout, template: theme() }, { responsive: true, displaylogo: false })
      .then(() => { drawn.push(plot); setTimeout(next); });
  };
  dark.addEventListener("change", () => drawn.forEach((plot) => Plotly.relayout(plot, { template: theme() })));
  next();
})();
"""
