// Colours. One ramp a theme, made in OKLCH with a straight line of lightness, so that equal steps look equal, also to
// colour-blind eyes and in grey. It begins near the page's background: what gets no attention is not there.

const RAMP_STEPS = 256;

function oklchToRgb(lightness, chroma, hue) {
  const a = chroma * Math.cos((hue * Math.PI) / 180), b = chroma * Math.sin((hue * Math.PI) / 180);
  const l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
  return [
    4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
  ];
}

function inGamut(rgb) {
  return rgb.every((part) => part >= -1e-4 && part <= 1 + 1e-4);
}

function encoded(linear) {
  const part = Math.min(1, Math.max(0, linear));
  return Math.round(255 * (part <= 0.0031308 ? 12.92 * part : 1.055 * part ** (1 / 2.4) - 0.055));
}

function colourAt(lightness, chroma, hue) {
  let kept = chroma; // less colour where the screen cannot show it; never another lightness
  while (kept > 0 && !inGamut(oklchToRgb(lightness, kept, hue))) kept -= 0.004;
  return oklchToRgb(lightness, Math.max(0, kept), hue).map(encoded);
}

function ramp(lightness, chroma, hue) {
  return Array.from({ length: RAMP_STEPS }, (_, i) => {
    const t = i / (RAMP_STEPS - 1);
    return colourAt(lightness(t), chroma(t), hue(t));
  });
}

const swell = (t) => 0.03 + 0.12 * Math.sin(Math.PI * Math.min(1, t * 0.9 + 0.05));
const RAMPS = {
  dark: ramp((t) => 0.24 + 0.71 * t, swell, (t) => 288 - 183 * t),
  light: ramp((t) => 0.955 - 0.68 * t, (t) => 0.004 + 0.13 * Math.sin(Math.PI * 0.8 * t), (t) => 158 + 130 * t),
};

// changes, from -1 to 1: blue for less, orange for more, nothing where there is none
const CHANGES = {
  dark: { less: ramp((t) => 0.24 + 0.56 * t, (t) => 0.02 + 0.1 * t, () => 250), more: ramp((t) => 0.24 + 0.6 * t, (t) => 0.02 + 0.13 * t, () => 62) },
  light: { less: ramp((t) => 0.955 - 0.55 * t, (t) => 0.004 + 0.14 * t, () => 255), more: ramp((t) => 0.955 - 0.45 * t, (t) => 0.004 + 0.15 * t, () => 48) },
};

function changeCss(theme, t) {
  const step = Math.round(Math.min(1, Math.abs(t)) * (RAMP_STEPS - 1));
  return `rgb(${CHANGES[theme][t < 0 ? "less" : "more"][step].join(" ")})`;
}

// t in [0, 1] to a css colour; alpha lets what lies under it through
function css(theme, t, alpha = 1) {
  const [r, g, b] = RAMPS[theme][Math.round(Math.min(1, Math.max(0, t)) * (RAMP_STEPS - 1))];
  return alpha >= 1 ? `rgb(${r} ${g} ${b})` : `rgb(${r} ${g} ${b} / ${alpha})`;
}

// over a picture: nothing at 0, and never so much that the picture cannot be seen through it
const overlayAlpha = (t) => 0.6 * Math.min(1, Math.max(0, t)) ** 0.5;

// black or white, whichever can be read better on this tint: a contrast of 4.5 or more
function inkOn(theme, t) {
  const [r, g, b] = RAMPS[theme][Math.round(t * (RAMP_STEPS - 1))].map((part) => {
    const share = part / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  const luminance = 0.2126 * r + 0.7152 * g + 0.0722 * b;
  return luminance > 0.179 ? "#000000" : "#ffffff";
}

