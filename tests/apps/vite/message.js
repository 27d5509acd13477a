export const message = "before";
