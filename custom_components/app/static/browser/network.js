// The network in onnxruntime: on the CPU, or on the GPU where that is there, agrees and is faster.

const NOISE_UNKNOWN = [0, 0];
const PROBE = 24; // voxels per axis of what both compute before one is chosen
const AGREEMENT = 1e-3; // of the largest value

/** What is known of the acquisition, as the network was trained with it: 14 numbers. Widths in LR voxels, null: not known. */
export function condition(shape, target, spacing, widths) {
  const known = shape.flatMap((n, i) => {
    const factor = target[i] / n, width = factor > 1 ? widths[i] : null;
    return [Math.log2(factor), Math.log2(spacing[i]), width ?? 0, width === null ? 0 : 1];
  });
  return Float32Array.from([...known, ...NOISE_UNKNOWN]);
}

class Network {
  constructor(ort, session, name) {
    Object.assign(this, { ort, session, name });
  }

  /** Coefficients `(count, X, Y, Z)` of an image `(X, Y, Z)`, with the last axis fastest, and its noise where that is asked for. */
  async run(image, size, known, withNoise = false) {
    const feeds = {
      image: new this.ort.Tensor("float32", image, [1, 1, ...size]),
      condition: new this.ort.Tensor("float32", known, [1, known.length]),
    };
    const { detail, noise } = await this.session.run(feeds, withNoise ? ["detail", "noise"] : ["detail"]);
    return { data: detail.data, count: detail.dims[1], noise: noise?.data };
  }

  /** Voxels that a tile needs beside its own, on each side. */
  async halo() {
    const feeds = { image: new this.ort.Tensor("float32", new Float32Array(8), [1, 1, 2, 2, 2]), condition: new this.ort.Tensor("float32", new Float32Array(14), [1, 14]) };
    return Number((await this.session.run(feeds, ["halo"])).halo.data[0]);
  }
}

async function adapter() {
  const found = await navigator.gpu?.requestAdapter().catch(() => null);
  return found && !(found.info?.isFallbackAdapter ?? false);
}

async function probe(network) {
  const image = Float32Array.from({ length: PROBE ** 3 }, (_, i) => ((i * 7919) % 1009) / 1009), known = condition([1, 1, 1], [2, 2, 2], [1, 1, 1], [null, null, null]);
  await network.run(image, [PROBE, PROBE, PROBE], known); // the first one compiles
  const start = performance.now(), { data } = await network.run(image, [PROBE, PROBE, PROBE], known);
  return { data, ms: performance.now() - start };
}

/**
 * Open the network of `model`, the bytes of an ONNX file.
 *
 * `backend`: wasm or webgpu takes that one; nothing takes the GPU where there is one which agrees with the CPU and is faster.
 */
export async function openNetwork(ort, model, { folder, threads, backend }) {
  ort.env.wasm.wasmPaths = folder;
  ort.env.logLevel = "error";
  if (threads || !self.crossOriginIsolated) ort.env.wasm.numThreads = threads || 1;
  const open = async (kind, name) => new Network(ort, await ort.InferenceSession.create(model, { executionProviders: [kind] }), name);
  if (backend === "webgpu") return open("webgpu", "GPU");
  const cpu = await open("wasm", "CPU");
  if (backend === "wasm" || !(await adapter())) return cpu;
  try {
    const gpu = await open("webgpu", "GPU"), [a, b] = [await probe(cpu), await probe(gpu)];
    const largest = a.data.reduce((m, v) => Math.max(m, Math.abs(v)), 0);
    const agree = a.data.every((v, i) => Math.abs(v - b.data[i]) <= AGREEMENT * largest);
    return agree && b.ms < a.ms ? gpu : cpu;
  } catch {
    return cpu; // a driver that refuses a kernel or runs out of memory
  }
}
