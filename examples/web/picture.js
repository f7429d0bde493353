// Colours of classes, and labels as a PNG file.

/** RGB of classes 0 to n - 1, hues apart by the golden angle (OKLCH to sRGB: B. Ottosson, 2020). */
export function colours(n) {
  return Array.from({ length: n }, (_, i) => {
    const [lightness, chroma] = [0.52 + 0.34 * ((i * 0.618034) % 1), 0.1 + 0.04 * ((i * 0.7548777) % 1)];
    const hue = (250 + i * 137.50776) * (Math.PI / 180);
    const [a, b] = [chroma * Math.cos(hue), chroma * Math.sin(hue)];
    const l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
    const m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
    const s = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
    return [
      4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
      -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
      -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
    ].map((x) =>
      Math.round(255 * Math.min(x <= 0.0031308 ? Math.max(12.92 * x, 0) : 1.055 * x ** (1 / 2.4) - 0.055, 1)),
    );
  });
}

/** A PNG whose pixel values are the labels: with a palette for up to 255 classes, else 16-bit grey. */
export async function labelPng(labels, [height, width], palette) {
  const deep = palette.length > 255;
  const step = deep ? 2 : 1;
  const lines = new Uint8Array(height * (1 + step * width)); // every line begins with its filter, 0: none
  for (let y = 0, at = 0, i = 0; y < height; y++) {
    at++;
    for (let x = 0; x < width; x++, i++) {
      if (deep) lines[at++] = labels[i] >> 8;
      lines[at++] = labels[i];
    }
  }
  const zlib = new Blob([lines]).stream().pipeThrough(new CompressionStream("deflate"));
  const header = new DataView(new ArrayBuffer(13));
  header.setUint32(0, width);
  header.setUint32(4, height);
  header.setUint8(8, 8 * step); // bits
  header.setUint8(9, deep ? 0 : 3); // grey or palette
  const chunks = [
    Uint8Array.of(137, 80, 78, 71, 13, 10, 26, 10),
    chunk("IHDR", new Uint8Array(header.buffer)),
    ...(deep ? [] : [chunk("PLTE", Uint8Array.from(palette.flat()))]),
    chunk("IDAT", new Uint8Array(await new Response(zlib).arrayBuffer())),
    chunk("IEND", new Uint8Array()),
  ];
  return new Blob(chunks, { type: "image/png" });
}

function chunk(kind, data) {
  const bytes = new Uint8Array(12 + data.length);
  bytes.set(
    [...kind].map((letter) => letter.charCodeAt(0)),
    4,
  );
  bytes.set(data, 8);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, data.length);
  view.setUint32(8 + data.length, crc(bytes.subarray(4, 8 + data.length)));
  return bytes;
}

const CRC = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let bit = 0; bit < 8; bit++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

function crc(bytes) {
  let rest = 0xffffffff;
  for (const byte of bytes) rest = CRC[(rest ^ byte) & 255] ^ (rest >>> 8);
  return ~rest >>> 0;
}
