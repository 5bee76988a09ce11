(** INV-5: phi^2n + phi^-2n is the Lucas number L_2n, an integer, for every n; the guard's margin measures just how far the
    gain is from closing so; and phi is not alone in this. *)

Require Import Reals Lra Lia ZArith QArith Qreals.
From Karat Require Import Carrier Golden Constants.

(** (L_n, L_(n+1)) -> (L_(n+1), L_(n+2)), on integers as it runs. *)
Definition next_pair (pair : Z * Z) : Z * Z := (snd pair, fst pair + snd pair)%Z.
Definition lucas (n : nat) : Z := fst (Nat.iter n next_pair lucas_start).

(** u^(n+1) + u^-(n+1) from the two sums before it, for u + 1/u = trace. *)
Definition next_power_sum (trace a b : Z) : Z := (trace * b - a)%Z.
Definition power_sum (trace : Z) (n : nat) : Z :=
  fst (Nat.iter n (fun pair => (snd pair, next_power_sum trace (fst pair) (snd pair))) (2%Z, trace)).

Section D.
Context {K : Carrier}.
Local Open Scope carrier_scope.

Definition half_ulp_here : K := of_Z (Qnum half_ulp) / of_Z (Zpos (Qden half_ulp)).

Definition closure_margin (g closes_to : K) : K :=
  half_ulp_here * g * g - absolute (g * g - closes_to * g + one).
End D.

Local Open Scope R_scope.

Notation closure_margin_R := (closure_margin (K := on_R)).

Lemma lucas_0 : lucas 0 = 2%Z.
Proof. reflexivity. Qed.

Lemma lucas_1 : lucas 1 = 1%Z.
Proof. reflexivity. Qed.

Lemma lucas_pair (n : nat) : Nat.iter n next_pair lucas_start = (lucas n, lucas (S n)).
Proof. unfold lucas. simpl. destruct (Nat.iter n next_pair lucas_start). reflexivity. Qed.

Lemma lucas_SS (n : nat) : lucas (S (S n)) = (lucas n + lucas (S n))%Z.
Proof. unfold lucas at 1. simpl. rewrite lucas_pair. reflexivity. Qed.

(** Where u^2 = u + 1 powers follow the recurrence. *)
Lemma power_SS (u : R) (n : nat) : u ^ 2 = u + 1 -> u ^ S (S n) = u ^ n + u ^ S n.
Proof. intro E. replace (u ^ S (S n)) with (u ^ n * u ^ 2) by (simpl; ring). rewrite E. simpl. ring. Qed.

(** phi^n and its conjugate's add to L_n, for every n. *)
Theorem powers_add_to_lucas : forall n : nat, phi ^ n + psi ^ n = IZR (lucas n).
Proof.
  intro n. enough (H : phi ^ n + psi ^ n = IZR (lucas n) /\ phi ^ S n + psi ^ S n = IZR (lucas (S n))) by apply H.
  induction n as [|n [H0 H1]].
  - rewrite lucas_0, lucas_1. unfold phi, psi. simpl. lra.
  - split; [exact H1|]. rewrite (power_SS phi), (power_SS psi), lucas_SS, plus_IZR, <- H0, <- H1
      by (apply phi_squared || apply psi_squared). ring.
Qed.

(** Closure: phi^2n + phi^-2n = L_2n, for every n. *)
Theorem even_powers_close : forall n : nat, phi ^ (2 * n) + / phi ^ (2 * n) = IZR (lucas (2 * n)).
Proof.
  intro n. rewrite <- powers_add_to_lucas. f_equal. pose proof phi_positive as P.
  assert (N : phi ^ (2 * n) <> 0) by (apply pow_nonzero; lra).
  apply Rmult_eq_reg_l with (phi ^ (2 * n)); [|exact N]. rewrite Rinv_r by exact N.
  rewrite <- Rpow_mult_distr, phi_times_psi, pow_mult. replace ((-1) ^ 2) with 1 by ring. symmetry. apply pow1.
Qed.

(** An odd power need not: phi + 1/phi = sqrt 5 is no integer. *)
Theorem phi_itself_does_not_close : forall z : Z, phi + / phi <> IZR z.
Proof.
  intros z H. rewrite phi_inverse in H. unfold phi in H. destruct sqrt5_enclosed as [L U].
  assert (L' : IZR 2 < IZR z) by lra. assert (U' : IZR z < IZR 3) by lra.
  apply lt_IZR in L'. apply lt_IZR in U'. lia.
Qed.

(** Every unit u whose trace u + 1/u is an integer has integer sums u^n + u^-n, those of the recurrence, for every n. *)
Theorem any_unit_closes : forall (u : R) (trace : Z) (n : nat),
  u <> 0 -> u + / u = IZR trace -> u ^ n + / u ^ n = IZR (power_sum trace n).
Proof.
  intros u trace n N T. rewrite <- pow_inv.
  set (step := fun pair : Z * Z => (snd pair, next_power_sum trace (fst pair) (snd pair))).
  enough (H : IZR (fst (Nat.iter n step (2%Z, trace))) = u ^ n + (/ u) ^ n /\
              IZR (snd (Nat.iter n step (2%Z, trace))) = u ^ S n + (/ u) ^ S n) by (symmetry; apply H).
  induction n as [|n [H0 H1]]; [simpl; lra|].
  change (Nat.iter (S n) step (2%Z, trace)) with (step (Nat.iter n step (2%Z, trace))). unfold step at 1 3.
  split; [exact H1|]. unfold next_power_sum. cbn [snd fst]. rewrite minus_IZR, mult_IZR, H0, H1, <- T.
  simpl. field_simplify; [|exact N|exact N].
  replace ((/ u) ^ n) with ((/ u) ^ n * (u * / u)) by (rewrite Rinv_r by exact N; ring). field. exact N.
Qed.

Lemma any_unit_closes_satisfiable : exists (u : R) (trace : Z) (n : nat), u <> 0 /\ u + / u = IZR trace.
Proof.
  exists (phi ^ 2), 3%Z, 5%nat. split; [apply pow_nonzero; pose proof phi_positive; lra | apply phi_squares].
Qed.

Lemma sqrt2_squared : sqrt 2 * sqrt 2 = 2.
Proof. apply sqrt_sqrt; lra. Qed.

(** (1 + sqrt 2)^n and its conjugate's add to an integer, for every n. *)
Theorem silver_powers_add : forall n : nat, exists z : Z, (1 + sqrt 2) ^ n + (1 - sqrt 2) ^ n = IZR z.
Proof.
  intro n. pose proof sqrt2_squared as E.
  enough (H : exists x y : Z, (1 + sqrt 2) ^ n = IZR x + IZR y * sqrt 2 /\ (1 - sqrt 2) ^ n = IZR x - IZR y * sqrt 2).
  { destruct H as [x [y [-> ->]]]. exists (2 * x)%Z. rewrite mult_IZR. ring. }
  induction n as [|n [x [y [H0 H1]]]]; [exists 1%Z, 0%Z; simpl; lra|].
  exists (x + 2 * y)%Z, (x + y)%Z. rewrite !plus_IZR, mult_IZR. simpl pow. rewrite H0, H1.
  split.
  - transitivity (IZR x + IZR y * (sqrt 2 * sqrt 2) + (IZR x + IZR y) * sqrt 2); [ring | rewrite E; ring].
  - transitivity (IZR x + IZR y * (sqrt 2 * sqrt 2) - (IZR x + IZR y) * sqrt 2); [ring | rewrite E; ring].
Qed.

(** So phi is not the only one, as the seed has it: (1 + sqrt 2)^2 closes for every n too. *)
Theorem phi_is_not_alone : exists u : R, 1 < u /\ u <> phi ^ 2 /\ forall n : nat, exists z : Z, u ^ n + / u ^ n = IZR z.
Proof.
  pose proof sqrt2_squared as E. assert (1 < sqrt 2) by (rewrite <- sqrt_1 at 1; apply sqrt_lt_1_alt; lra).
  exists ((1 + sqrt 2) ^ 2). split; [nra|]. split.
  - rewrite phi_squared. destruct phi_enclosed. simpl. nra.
  - intro n. exists (power_sum 6 n). apply any_unit_closes; [nra|].
    assert (I : / (1 + sqrt 2) ^ 2 = 3 - 2 * sqrt 2).
    { apply Rmult_eq_reg_l with ((1 + sqrt 2) ^ 2); [|nra]. rewrite Rinv_r by nra. nra. }
    rewrite I. simpl. nra.
Qed.

Lemma closure_margin_is (g c : R) : closure_margin_R g c = g ^ 2 / 2 ^ 53 - Rabs (g ^ 2 - c * g + 1).
Proof.
  unfold closure_margin, half_ulp_here. rewrite absolute_Rabs. unfold one; simpl.
  replace (g * g - c * g + 1) with (g * (g * 1) - c * g + 1) by ring. f_equal. field.
Qed.

(** The margin is >= 0 iff |g^2 - closes_to g + 1| <= 2^-53 g^2, for all reals. *)
Theorem closure_margin_sign : forall g closes_to : R,
  0 <= closure_margin_R g closes_to <-> Rabs (g ^ 2 - closes_to * g + 1) <= g ^ 2 / 2 ^ 53.
Proof. intros g c. rewrite closure_margin_is. split; intro; lra. Qed.

(** For g > 0 that says that g + 1/g is closes_to to within 2^-53 g. *)
Theorem closure_margin_relative : forall g closes_to : R, 0 < g ->
  (0 <= closure_margin_R g closes_to <-> Rabs (g + / g - closes_to) <= g / 2 ^ 53).
Proof.
  intros g c P. rewrite closure_margin_sign.
  replace (g ^ 2 - c * g + 1) with (g * (g + / g - c)) by (field; lra).
  rewrite Rabs_mult, (Rabs_pos_eq g) by lra. replace (g ^ 2 / 2 ^ 53) with (g * (g / 2 ^ 53)) by (simpl; field).
  split; intro H; [apply Rmult_le_reg_l with g | apply Rmult_le_compat_l]; lra.
Qed.

Lemma closure_margin_relative_satisfiable : exists g closes_to : R, 0 < g.
Proof. exists 2, 3. lra. Qed.

(** With closes_to = u + 1/u the margin is 2^-53 g^2 - |(g - u)(g - 1/u)|. *)
Theorem closure_margin_factors : forall g u : R,
  u <> 0 -> closure_margin_R g (u + / u)%R = g ^ 2 / 2 ^ 53 - Rabs ((g - u) * (g - / u)).
Proof. intros g u N. rewrite closure_margin_is. do 2 f_equal. field. exact N. Qed.

Lemma closure_margin_factors_satisfiable : exists g u : R, u <> 0.
Proof. exists 3, 2. lra. Qed.

(** So for the declared sum L_2m the guard measures the distance of the gain from phi^2m and phi^-2m, for every m. *)
Theorem golden_margin : forall (g : R) (m : nat),
  closure_margin_R g (IZR (lucas (2 * m))) = g ^ 2 / 2 ^ 53 - Rabs ((g - phi ^ (2 * m)) * (g - / phi ^ (2 * m))).
Proof.
  intros g m. rewrite <- even_powers_close. apply closure_margin_factors. apply pow_nonzero. pose proof phi_positive. lra.
Qed.

(** Whatever unit u > 0 the gain is within half an ulp of, the guard accepts it, if the gain is not below 1/u. *)
Theorem rounded_is_accepted : forall g u : R,
  0 < u -> / u <= g -> Rabs (g - u) <= g / 2 ^ 53 -> 0 <= closure_margin_R g (u + / u)%R.
Proof.
  intros g u P W H. assert (0 < / u) by (apply Rinv_0_lt_compat; exact P).
  rewrite closure_margin_factors, Rabs_mult, (Rabs_pos_eq (g - / u)) by lra.
  assert (Rabs (g - u) * (g - / u) <= g / 2 ^ 53 * g)
    by (apply Rmult_le_compat; try apply Rabs_pos; lra).
  simpl in *. lra.
Qed.

Lemma rounded_is_accepted_satisfiable : exists g u : R, 0 < u /\ / u <= g /\ Rabs (g - u) <= g / 2 ^ 53.
Proof.
  exists 2, (2 - / 2 ^ 53). split; [simpl; lra|]. split; [|rewrite Rabs_pos_eq; simpl; lra].
  apply Rle_trans with 1; [|lra]. rewrite <- Rinv_1. apply Rinv_le_contravar; simpl; lra.
Qed.
