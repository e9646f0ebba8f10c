/** What a user reads in one line: what was expected, then what came. */
export class ScanError extends Error {}
