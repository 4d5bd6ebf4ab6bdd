// A neuron with three inputs, drawn anew whenever a slider moves. The formulas are those of ttfs_kernels.rule.
"use strict";

const SIZE = { width: 640, height: 300, left: 44, right: 12, top: 14, bottom: 34 };
const LIMITS = { low: -1, high: 2 };
const SLIDERS = [
  ["x1", "activation x₁", 0, 1, 0.9], ["w1", "weight w₁", -1, 1, 0.5],
  ["x2", "activation x₂", 0, 1, 0.6], ["w2", "weight w₂", -1, 1, 0.35],
  ["x3", "activation x₃", 0, 1, 0.25], ["w3", "weight w₃", -1, 1, -0.3],
  ["sigma", "persistence σ", 0, 1, 1], ["bias", "initial potential", -1, 1, 0],
];

/** Potential A at the window's start, slope W in it, and the activation of the closed form. */
function fire({ inputs, sigma, bias }) {
  let potential = bias, slope = 0;
  for (const { x, w } of inputs) {
    potential += w * x;
    slope += x > 0 ? sigma * w : 0;
  }
  if (potential >= 1) return { potential, slope, activation: 1 };
  if (potential + slope > 0) return { potential, slope, activation: (potential + slope) / (1 + slope) };
  return { potential, slope, activation: 0 };
}

/** Potential at a time in [0, 1], the inputs' window: every spike starts a ramp. */
function integrate({ inputs, bias }, time) {
  return inputs.reduce((sum, { x, w }) => sum + (x > 0 ? w * Math.max(0, time - (1 - x)) : 0), bias);
}

const across = (time) => SIZE.left + (time / 2) * (SIZE.width - SIZE.left - SIZE.right);
const down = (value) => SIZE.top +
  ((LIMITS.high - value) / (LIMITS.high - LIMITS.low)) * (SIZE.height - SIZE.top - SIZE.bottom);
const line = (points, name) =>
  `<polyline class="${name}" points="${points.map(([t, v]) => `${across(t)},${down(v)}`).join(" ")}"/>`;
const text = (t, v, words, anchor = "middle") =>
  `<text x="${across(t)}" y="${down(v)}" text-anchor="${anchor}">${words}</text>`;

function draw(figure, says, state) {
  const { potential, slope, activation } = fire(state);
  const instants = [0, ...state.inputs.filter(({ x }) => x > 0).map(({ x }) => 1 - x).sort((a, b) => a - b), 1];
  const spike = 2 - activation;
  const parts = [
    `<rect class="window" x="${across(1)}" y="${SIZE.top}" width="${across(2) - across(1)}"
      height="${SIZE.height - SIZE.top - SIZE.bottom}"/>`,
    line([[0, 0], [2, 0]], "axis"),
    line([[1, 1], [2, 0]], "threshold"),
    line([...instants.map((t) => [t, integrate(state, t)]), [2, potential + slope]], "potential"),
    ...state.inputs.map(({ x }) => x > 0 ? `<circle class="input" cx="${across(1 - x)}" cy="${down(0)}" r="4"/>` : ""),
    text(0.5, LIMITS.low - 0.22, "inputs spike"), text(1.5, LIMITS.low - 0.22, "the neuron may fire"),
    text(0, 1, "1 ", "end"), text(0, 0, "0 ", "end"), text(1.03, 1.12, "firing threshold", "start"),
  ];
  if (activation > 0) parts.push(`<circle class="spike" cx="${across(spike)}" cy="${down(activation)}" r="6"/>`);
  figure.innerHTML = parts.join("");
  const numbers = `A = ${potential.toFixed(2)}, W = ${slope.toFixed(2)}`;
  says.textContent = activation === 0
    ? `${numbers}: the potential stays below the threshold, the neuron is silent (activation 0)`
    : `${numbers}: fires ${(1 - activation).toFixed(2)} after the window's start (activation ${activation.toFixed(2)})`;
}

function build(place) {
  place.innerHTML = `<svg viewBox="0 0 ${SIZE.width} ${SIZE.height}" role="img"
    aria-label="Membrane potential and firing threshold"></svg><p class="says" aria-live="polite"></p>
    <div class="sliders">${SLIDERS.map(([name, label, low, high, value]) =>
      `<label>${label} <output></output><input type="range" name="${name}" min="${low}" max="${high}" step="0.05"
        value="${value}"></label>`).join("")}</div>`;
  const read = (name) => Number(place.querySelector(`[name=${name}]`).value);
  const update = () => {
    for (const label of place.querySelectorAll("label")) {
      label.querySelector("output").textContent = Number(label.querySelector("input").value).toFixed(2);
    }
    const inputs = [1, 2, 3].map((i) => ({ x: read(`x${i}`), w: read(`w${i}`) }));
    draw(place.querySelector("svg"), place.querySelector(".says"),
      { inputs, sigma: read("sigma"), bias: read("bias") });
  };
  place.addEventListener("input", update);
  update();
}

document.querySelectorAll(".neuron-figure").forEach(build);
