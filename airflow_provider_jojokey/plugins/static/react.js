// Airflow's own React, which it hands to plugins as a global. One copy in the page, one set of hooks.
const { React, ReactDOM, ReactRouterDOM } = globalThis;

export const {
  Fragment,
  createElement: h,
  useCallback,
  useEffect,
  useId,
  useLayoutEffect,
  useMemo,
  useRef,
  useState,
} = React;
export const { createPortal } = ReactDOM;
export const { Link: RouterLink, useLocation, useNavigate } = ReactRouterDOM;
